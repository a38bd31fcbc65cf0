"""Events to documents, in a real database."""

import asyncio
import random
import uuid
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.common.kafka import EventsRejected
from libs.common.models import Status
from libs.common.problems import Problem
from services.search.consumers import INDEX_HANDLERS
from services.search.documents import Documents
from services.search.queries import Queries
from tests.support.indexing import TicketsOwner, changed, commented, created

ALL = "SELECT * FROM documents WHERE organization_id = $1 ORDER BY ticket_id"


async def stored(writers: asyncpg.Pool, organization_id: uuid.UUID) -> list[dict[str, Any]]:
    return [dict(row) for row in await writers.fetch(ALL, organization_id)]


async def test_a_document_follows_its_ticket(documents: Documents, writers: asyncpg.Pool, owner: TicketsOwner) -> None:
    organization = uuid.uuid4()
    first = created(organization, title="Printer on fire")
    second = commented(first, "Bring water")
    third = changed(second, status=Status.SOLVED)
    fourth = commented(third, "Thanks")
    owner.asked.clear()
    await documents.apply([first, second], INDEX_HANDLERS)
    await documents.apply([second, third, fourth, first], INDEX_HANDLERS)
    (row,) = await stored(writers, organization)
    assert (row["version"], row["status"], row["comments"]) == (4, "solved", "Bring water\nThanks")
    assert not owner.asked


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.booleans(), max_size=5),
    order=st.randoms(use_true_random=False),
    batch=st.integers(1, 4),
)
async def test_any_order_with_duplicates_ends_in_the_same_document(
    documents: Documents,
    writers: asyncpg.Pool,
    owner: TicketsOwner,
    *,
    kinds: list[bool],
    order: random.Random,
    batch: int,
) -> None:
    organization = uuid.uuid4()
    life = [created(organization)]
    for number, is_comment in enumerate(kinds):
        life.append(commented(life[-1], f"c{number}") if is_comment else changed(life[-1], title=f"title {number}"))
    owner.add(life)
    await documents.apply(life, INDEX_HANDLERS)
    expected = await stored(writers, organization)
    await writers.execute("UPDATE documents SET version = 0 WHERE organization_id = $1", organization)
    # Of the document nothing but its key is left, so that what follows has to make it anew.
    await writers.execute("UPDATE documents SET comments = '', title = '' WHERE organization_id = $1", organization)
    delivered = [*life, *order.choices(life, k=len(life))]
    order.shuffle(delivered)
    for start in range(0, len(delivered), batch):
        await documents.apply(delivered[start : start + batch], INDEX_HANDLERS)
    assert await stored(writers, organization) == expected


async def test_a_gap_is_filled_from_the_tickets_service(
    documents: Documents, writers: asyncpg.Pool, owner: TicketsOwner
) -> None:
    organization = uuid.uuid4()
    first = created(organization)
    second = commented(first, "missed")
    third = changed(second, title="Third")
    owner.add([first, second, third])
    await documents.apply([first], INDEX_HANDLERS)
    await documents.apply([third], INDEX_HANDLERS)
    (row,) = await stored(writers, organization)
    assert (row["version"], row["title"], row["comments"]) == (3, "Third", "missed")


async def test_nothing_is_stored_while_the_tickets_service_is_away_or_behind(
    documents: Documents, writers: asyncpg.Pool, owner: TicketsOwner
) -> None:
    organization = uuid.uuid4()
    other = created(organization)
    life = [created(organization)]
    life += [changed(life[0])]
    owner.add(life[:1])
    with pytest.raises(RuntimeError, match="version 1"):
        await documents.apply([other, life[1]], INDEX_HANDLERS)
    owner.add(life)
    owner.broken = True
    try:
        with pytest.raises(Problem, match="service_unavailable"):
            await documents.apply([other, life[1]], INDEX_HANDLERS)
    finally:
        owner.broken = False
    assert await stored(writers, organization) == []
    await documents.apply([other, life[1]], INDEX_HANDLERS)
    assert len(await stored(writers, organization)) == 2


async def test_all_events_of_tickets_that_do_not_exist_are_rejected_at_once(documents: Documents) -> None:
    """One by one, a topic of another installation would be taken for a hung consumer."""
    orphans = [changed(created(uuid.uuid4())) for _ in range(20)]
    later = [changed(orphan) for orphan in orphans]
    with pytest.raises(EventsRejected, match="does not exist") as raised:
        await documents.apply([*orphans, created(uuid.uuid4()), *later], INDEX_HANDLERS)
    assert {event.id for event, _reason in raised.value.rejections} == {event.id for event in (*orphans, *later)}


async def test_only_the_document_that_cannot_be_stored_is_rejected(documents: Documents, writers: asyncpg.Pool) -> None:
    organization = uuid.uuid4()
    good, bad = created(organization), created(organization)
    ticket = msgspec.structs.replace(bad.data.ticket, number=2**70)
    bad = msgspec.structs.replace(bad, data=msgspec.structs.replace(bad.data, ticket=ticket))
    with pytest.raises(EventsRejected, match="cannot be stored") as raised:
        await documents.apply([bad, good], INDEX_HANDLERS)
    assert [event for event, _reason in raised.value.rejections] == [bad]
    await documents.apply([good], INDEX_HANDLERS)
    assert [row["ticket_id"] for row in await stored(writers, organization)] == [good.data.ticket.id]


async def test_nul_in_an_event_is_stored_as_a_replacement(documents: Documents, writers: asyncpg.Pool) -> None:
    organization = uuid.uuid4()
    first = created(organization, title="a\x00b", description="c\x00d")
    event = changed(first, fields={"k\x00": "v\x00"}, external_id="e\x00")
    await documents.apply([first, commented(event, "f\x00")][:1], INDEX_HANDLERS)
    await documents.apply([event, commented(event, "f\x00")], INDEX_HANDLERS)
    (row,) = await stored(writers, organization)
    assert (row["title"], row["description"], row["comments"]) == ("a\ufffdb", "c\ufffdd", "f\ufffd")


@pytest.mark.parametrize("run", ["@", "a@1", "a_", "/~", "./", "<!--"])
async def test_text_that_postgres_parses_in_quadratic_time_stays_fast(
    documents: Documents, readers: asyncpg.Pool, run: str
) -> None:
    organization = uuid.uuid4()
    event = created(organization, title=(run * 300)[:290] + " needle", description=(run * 65536)[:65536])
    async with asyncio.timeout(20):  # as it came, 65,536 characters of `a@1` would take more than a minute
        await documents.apply([event, commented(event, (run * 65536)[:65536])], INDEX_HANDLERS)
        answer, _words = await Queries(readers).search(organization, "needle", 20)
    assert len(answer.results) == 1
