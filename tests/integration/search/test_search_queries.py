"""What a search finds, and what it must never find."""

import datetime as dt
import uuid

import asyncpg
import msgspec
import pytest

from libs.common.events import TicketEvent
from services.search.consumers import INDEX_HANDLERS
from services.search.documents import Documents
from services.search.queries import Queries
from tests.support.indexing import commented, created
from tests.support.transactions import transaction

ANY = "SELECT ticket_id FROM documents"
FUNCTION = "SELECT ticket_id FROM search_documents($1, $2, $3, $4)"


def numbered(event: TicketEvent, number: int, *, days_ago: float = 0) -> TicketEvent:
    created_at = event.data.ticket.created_at - dt.timedelta(days=days_ago)
    ticket = msgspec.structs.replace(event.data.ticket, number=number, created_at=created_at)
    return msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, ticket=ticket))


async def test_titles_weigh_more_than_texts_and_new_more_than_old(documents: Documents, readers: asyncpg.Pool) -> None:
    organization = uuid.uuid4()
    body = numbered(created(organization, title="Something else", description="a printer stands here"), 1)
    old = numbered(created(organization, title="Printer"), 2, days_ago=90)
    new = numbered(created(organization, title="Printers"), 3)
    comment = numbered(created(organization, title="No match"), 4)
    await documents.apply([body, old, new, comment, commented(comment, "my printer")], INDEX_HANDLERS)
    answer, _words = await Queries(readers).search(organization, "printer", 20)
    assert [result.ticket.number for result in answer.results][:2] == [3, 2]
    assert {result.ticket.number for result in answer.results} == {1, 2, 3, 4}
    scores = [result.score for result in answer.results]
    assert scores == sorted(scores, reverse=True)
    assert len((await Queries(readers).search(organization, "printer", 2))[0].results) == 2


@pytest.mark.parametrize("text", ["42", "#42", " 42 "])
async def test_a_bare_number_finds_its_ticket_first(documents: Documents, readers: asyncpg.Pool, text: str) -> None:
    organization = uuid.uuid4()
    says = numbered(created(organization, title="42 42 42"), 1)
    is_it = numbered(created(organization, title="Old"), 42, days_ago=1000)
    await documents.apply([says, is_it], INDEX_HANDLERS)
    answer, _words = await Queries(readers).search(organization, text, 20)
    assert [result.ticket.number for result in answer.results] == [42, 1]


async def test_highlights_are_escaped_and_marked(documents: Documents, readers: asyncpg.Pool) -> None:
    organization = uuid.uuid4()
    event = created(
        organization,
        title='Printer & "smoke" \x01x\x02 < 5',
        description="<img src=x onerror=alert(1)> the printer's <mark>tray</mark>",
    )
    await documents.apply([event], INDEX_HANDLERS)
    (result,) = (await Queries(readers).search(organization, "printer", 20))[0].results
    assert result.highlight.startswith("<mark>Printer</mark> &amp; &quot;smoke&quot; x &lt; 5 … ")
    assert "<mark>printer</mark>&#x27;s" in result.highlight
    assert "<img" not in result.highlight
    assert result.highlight.count("<mark>") == 2


@pytest.mark.parametrize(
    "text", ["the", "!!! & | <-> :*", '"', "-", "\\", "' OR 1=1 --", "OR OR", "%_", "\ud7ff\U0010ffff", "9" * 30]
)
async def test_any_text_is_a_search(readers: asyncpg.Pool, text: str) -> None:
    assert (await Queries(readers).search(uuid.uuid4(), text, 20))[0].results == []


async def test_only_the_tenants_own_documents_are_seen(documents: Documents, readers: asyncpg.Pool) -> None:
    ours, theirs = uuid.uuid4(), uuid.uuid4()
    event, foreign = numbered(created(ours, title="apricot"), 5), numbered(created(theirs, title="apricot"), 6)
    newer = [created(theirs, title="apricot") for _ in range(200)]
    await documents.apply([event, foreign, *newer], INDEX_HANDLERS)
    mine = [event.data.ticket.id]
    async with transaction(readers, organization_id=ours, read_only=True) as connection:
        assert [row["ticket_id"] for row in await connection.fetch(ANY)] == mine
        # The policy stands behind a statement that asks for somebody else's rows.
        foreign_rows = await connection.fetch(f"{ANY} WHERE organization_id = $1", theirs)
        assert foreign_rows == []
    assert await readers.fetch(ANY) == []
    for number in (None, 5, 6):
        for limit in (1, 50):
            # Nor do foreign matches, be they newer or better, take the place of our own.
            rows = await readers.fetch(FUNCTION, ours, "apricot", number, limit)
            assert [row["ticket_id"] for row in rows] == mine
            assert await readers.fetch(FUNCTION, None, "apricot", number, limit) == []
    answer, _words = await Queries(readers).search(ours, "apricot OR -nothing", 20)
    assert [result.ticket.id for result in answer.results] == mine


async def test_no_role_can_do_more_than_its_work(database: str, readers: asyncpg.Pool, writers: asyncpg.Pool) -> None:
    for pool, statement in (
        (readers, "INSERT INTO documents DEFAULT VALUES"),
        (readers, "UPDATE documents SET title = ''"),
        (readers, "DELETE FROM documents"),
        (writers, "DELETE FROM documents"),
        (writers, "SELECT search_documents(uuidv7(), 'x', NULL, 1)"),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(statement)


async def test_the_function_is_pinned(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        row = await connection.fetchrow(
            "SELECT prosecdef, proconfig, proacl::text, proowner = relowner AS same_owner FROM pg_proc, pg_class "
            "WHERE proname = 'search_documents' AND relname = 'documents'"
        )
    finally:
        await connection.close()
    assert row["prosecdef"]
    assert row["same_owner"]
    assert set(row["proconfig"]) == {"search_path=pg_catalog, pg_temp", "plan_cache_mode=force_custom_plan"}
    assert not any(entry.startswith("=") for entry in row["proacl"].strip("{}").split(","))
