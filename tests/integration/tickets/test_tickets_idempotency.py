"""Idempotency-Key: a creation that is sent again is carried out once, and answered as it was the first time."""

import asyncio
import datetime as dt
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from libs.common.consistency import Position
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Principal, Signer
from libs.common.models import Role
from libs.common.postgres import create_pool
from services.tickets import store_idempotency
from services.tickets.database import APP_ROLE
from services.tickets.store_idempotency import CLAIM_KEY
from tests.support.processes import running_service
from tests.support.tickets import Answer, TicketsClient, TicketsDatabase, eventually, locked, waiting_for_locks
from tests.support.transactions import transaction

LOCK_NUMBERS = "SELECT FROM organizations WHERE id = $1 FOR UPDATE"
MAKE_OLDER = "UPDATE idempotency_records SET created_at = created_at - $2::interval WHERE organization_id = $1"
PARTITION_OF_THE_PAST = """
DO $do$ BEGIN
    EXECUTE format(
        'CREATE TABLE idempotency_records_of_the_past PARTITION OF idempotency_records FOR VALUES FROM (%L) TO (%L)',
        timestamptz '2000-01-01', date_trunc('day', now(), 'UTC'));
END $do$"""
RECORDS = "SELECT count(*) FROM idempotency_records WHERE organization_id = $1"
TICKETS = "SELECT count(*) FROM tickets WHERE organization_id = $1"
KILLED = ("-m", "tests.support.tickets_killed_after_commit")
CREATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "ticket": ("/api/tickets", {"title": "Once"}),
    "bulk": ("/api/tickets/bulk", {"tickets": [{"title": "One"}, {"title": ""}, {"title": "Two"}]}),
    "comment": ("/api/tickets/{ticket_id}/comments", {"body": "Once"}),
    "key": ("/api/keys", {"name": "Once"}),
}


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


async def post(client: TicketsClient, key: str | None, title: str = "Once", **more: Any) -> Answer:
    headers = keyed(key) if key is not None else {}
    return await client.request("POST", "/api/tickets", json={"title": title, **more}, headers=headers)


def told(answer: Answer) -> tuple[int, bytes, str | None, str | None, str]:
    """What a client sees of an answer, without what belongs to the moment."""
    headers = answer.headers
    return answer.status, answer.raw, headers.get("Location"), headers.get("ETag"), headers["Content-Type"]


@pytest.mark.parametrize("creation", CREATIONS)
async def test_a_creation_that_is_sent_again_gets_its_answer_byte_for_byte(
    client: TicketsClient, desk: TicketsDatabase, creation: str
) -> None:
    path, body = CREATIONS[creation]
    path = path.format(ticket_id=(await client.create()).body["id"])
    first = await client.request("POST", path, json=body, headers=keyed("a-key"))
    assert first.status in {200, 201}
    assert "Idempotency-Replayed" not in first.headers
    before = await desk.counts()
    for _ in range(2):
        again = await client.request("POST", path, json=body, headers=keyed("a-key"))
        assert told(again) == told(first)
        assert again.headers["Idempotency-Replayed"] == "true"
    assert await desk.counts() == before
    other = await client.request("POST", path, json=body, headers=keyed("another-key"))
    assert other.status == first.status
    assert other.raw != first.raw


async def test_a_replayed_answer_carries_a_token_that_includes_the_write(client: TicketsClient) -> None:
    first = await post(client, "token")
    again = await post(client, "token")
    assert Position.from_token(again.token) >= Position.from_token(first.token)


async def test_without_the_header_every_request_is_a_creation_and_nothing_is_recorded(
    client: TicketsClient, desk: TicketsDatabase
) -> None:
    answers = [await post(client, None) for _ in range(2)]
    assert [answer.body["number"] for answer in answers] == [1, 2]
    assert await desk.superuser.fetchval(RECORDS, client.principal.organization_id) == 0


async def test_a_key_that_comes_with_another_request_is_refused(client: TicketsClient, desk: TicketsDatabase) -> None:
    first = await post(client, "mine", "One")
    ours, theirs = [f"/api/tickets/{(await client.create()).body['id']}/comments" for _ in range(2)]
    assert (await client.request("POST", ours, json={"body": "x"}, headers=keyed("comment"))).status == 201
    before = await desk.counts()
    for answer in (
        await post(client, "mine", "Two"),
        await client.request("POST", "/api/keys", json={"name": "x"}, headers=keyed("mine")),
        await client.request("POST", theirs, json={"body": "x"}, headers=keyed("comment")),
    ):
        assert (answer.status, answer.code) == (422, "idempotency_key_reused")
    assert await desk.counts() == before
    assert told(await post(client, "mine", "One")) == told(first)


async def test_a_refused_creation_is_not_recorded(client: TicketsClient, desk: TicketsDatabase) -> None:
    await client.create(external_id="taken")
    organization_id = client.principal.organization_id
    for refused in (await post(client, "k", external_id="taken"), await post(client, "k", external_id="taken")):
        assert (refused.status, refused.code) == (409, "external_id_taken")
    missing = f"/api/tickets/{uuid.uuid4()}/comments"
    answer = await client.request("POST", missing, json={"body": "x"}, headers=keyed("k"))
    assert answer.code == "ticket_not_found"
    assert await desk.superuser.fetchval(RECORDS, organization_id) == 0
    made = await post(client, "k", external_id="free")
    assert (made.status, made.body["number"]) == (201, 2)


@pytest.mark.parametrize("key", ["", "with space", "\u00e9", "x" * 256, "tab\there"])
async def test_a_key_that_is_not_visible_ascii_is_refused(
    client: TicketsClient, desk: TicketsDatabase, key: str
) -> None:
    answer = await post(client, key)
    assert (answer.status, answer.code) == (400, "invalid_parameter")
    assert await desk.superuser.fetchval(TICKETS, client.principal.organization_id) == 0


async def test_a_key_of_255_characters_is_accepted(client: TicketsClient) -> None:
    key = "".join(chr(33 + n % 94) for n in range(255))
    assert told(await post(client, key)) == told(await post(client, key))


async def test_a_key_belongs_to_one_user(
    desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient], client: TicketsClient
) -> None:
    one, two = map(client_of, await desk.organization(Role.AGENT, Role.AGENT))
    answers = [await post(who, "shared", title) for who, title in ((one, "1"), (two, "2"), (client, "3"))]
    assert [answer.status for answer in answers] == [201] * 3
    assert len({answer.body["id"] for answer in answers}) == 3


async def test_of_fifty_retries_at_once_one_writes_and_each_gets_the_answer_or_409(
    client: TicketsClient, desk: TicketsDatabase
) -> None:
    # So that all of the service's connections are there, and the retries really meet.
    await asyncio.gather(*(post(client, None) for _ in range(40)))
    for turn in range(5):
        answers = await asyncio.gather(*(post(client, f"fifty-{turn}") for _ in range(50)))
        done = [answer for answer in answers if answer.status == 201]
        waiting = [answer for answer in answers if answer.status != 201]
        assert done
        assert len({told(answer) for answer in done}) == 1
        assert sum("Idempotency-Replayed" not in answer.headers for answer in done) == 1
        assert {(answer.status, answer.code) for answer in waiting} <= {(409, "idempotency_key_in_use")}
        assert await desk.superuser.fetchval(TICKETS, client.principal.organization_id) == 41 + turn
        assert told(await post(client, f"fifty-{turn}")) == told(done[0])


async def test_while_a_creation_runs_its_retries_are_told_to_come_again(
    client: TicketsClient, desk: TicketsDatabase
) -> None:
    organization_id = client.principal.organization_id
    async with locked(desk, LOCK_NUMBERS, organization_id):
        first = asyncio.create_task(post(client, "slow"))
        await eventually(lambda: waiting_for_locks(desk))
        retries = await asyncio.gather(*(post(client, "slow") for _ in range(5)))
        other = asyncio.create_task(post(client, "other"))
        assert {(a.status, a.code, a.headers["Retry-After"]) for a in retries} == {(409, "idempotency_key_in_use", "1")}
        assert not first.done()
    made = await first
    assert made.status == 201
    assert told(await post(client, "slow")) == told(made)
    assert (await other).body["number"] == 2


async def test_after_a_day_a_key_is_free_again(client: TicketsClient, desk: TicketsDatabase) -> None:
    """The record is made older in the table: nothing but its age decides."""
    first = await post(client, "daily")
    await desk.superuser.execute(PARTITION_OF_THE_PAST)
    try:
        await desk.superuser.execute(MAKE_OLDER, client.principal.organization_id, dt.timedelta(hours=23, minutes=59))
        assert told(await post(client, "daily")) == told(first)
        await desk.superuser.execute(MAKE_OLDER, client.principal.organization_id, dt.timedelta(minutes=2))
        again = await post(client, "daily", "Another body")
        assert (again.status, again.body["number"]) == (201, 2)
        assert told(await post(client, "daily", "Another body")) == told(again)
    finally:
        await desk.superuser.execute("DROP TABLE idempotency_records_of_the_past")


@pytest.mark.parametrize("creation", CREATIONS)
async def test_a_crash_between_commit_and_answer_makes_no_second_one(
    stack: Stack, client: TicketsClient, desk: TicketsDatabase, tmp_path: Path, creation: str
) -> None:
    path, body = CREATIONS[creation]
    path = path.format(ticket_id=(await client.create()).body["id"])
    before = await desk.counts()
    async with running_service(stack, "tickets", tmp_path / "log", script=KILLED, **desk.environment) as dying:
        signer = Signer(stack.credentials.signing_key("gateway"))
        headers = {PRINCIPAL_HEADER: signer.principal_token(client.principal, "tickets")} | keyed("crash")
        async with aiohttp.ClientSession(dying.url, headers=headers) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.post(path, json=body)
        after = await desk.counts()
        assert after != before, "the write was committed"
    again = await client.request("POST", path, json=body, headers=keyed("crash"))
    assert again.status in {200, 201}
    assert again.headers["Idempotency-Replayed"] == "true"
    assert await desk.counts() == after
    if creation == "ticket":
        assert (await client.request("GET", again.headers["Location"])).body == again.body


async def test_the_secret_of_a_key_is_not_readable_in_its_record(client: TicketsClient, desk: TicketsDatabase) -> None:
    made = await client.request("POST", "/api/keys", json={"name": "k"}, headers=keyed("a-very-secret-key"))
    rows = await desk.superuser.fetch(
        "SELECT body, r::text AS text FROM idempotency_records r WHERE organization_id = $1",
        client.principal.organization_id,
    )
    assert len(rows) == 1
    assert made.body["key"].encode() not in rows[0]["body"]
    assert b"rdk_" not in rows[0]["body"]
    assert "a-very-secret-key" not in rows[0]["text"]


@pytest_asyncio.fixture(loop_scope="session")
async def app(desk: TicketsDatabase) -> AsyncIterator[asyncpg.Pool]:
    """Connections as the service has them."""
    url = desk.environment["TICKETS_DATABASE_URL"]
    async with await create_pool(url, role=APP_ROLE, service="test", minimum=0, maximum=2) as pool:
        yield pool


async def test_a_record_belongs_to_its_organization(
    desk: TicketsDatabase, app: asyncpg.Pool, client: TicketsClient
) -> None:
    """Asked as the application for another organization, the claim finds nothing, whatever ids are named."""
    await post(client, "tenant")
    (stranger,) = await desk.organization()
    key = hashlib.sha256(b"tenant").digest()
    for seen_by, found in ((client.principal, True), (stranger, False)):
        async with transaction(app, organization_id=seen_by.organization_id) as connection:
            claim = await store_idempotency.claim(connection, client.principal, key)
            assert (claim.record is not None) is found


async def test_whoever_gets_a_key_after_another_sees_what_that_one_wrote(
    desk: TicketsDatabase, app: asyncpg.Pool, client: TicketsClient
) -> None:
    """Also when its statement began, and so took its snapshot, while the other was still writing."""
    key, record = bytes(32), store_idempotency.Record(b"f", 201, {}, b"{}")
    waits_first = CLAIM_KEY.replace("FROM ", "FROM (SELECT pg_advisory_xact_lock(815) OFFSET 0) AS wait, LATERAL ")
    arguments = client.principal.organization_id, client.principal.user_id, key, 24
    async with (
        locked(desk, "SELECT pg_advisory_xact_lock(815)"),
        transaction(app, organization_id=client.principal.organization_id) as writer,
    ):
        assert not (await store_idempotency.claim(writer, client.principal, key)).running
        await store_idempotency.insert(writer, client.principal, key, record)

        async def claim_late() -> asyncpg.Record:
            async with transaction(app, organization_id=client.principal.organization_id) as reader:
                return await reader.fetchrow(waits_first, *arguments)

        late = asyncio.create_task(claim_late())
        await eventually(lambda: waiting_for_locks(desk))
    claimed = await late
    assert (claimed["running"], claimed["fingerprint"]) == (False, b"f")
