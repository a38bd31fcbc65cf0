"""Read positions: a read with the token of a write has the write, whatever the replicas have."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from libs.common.consistency import AS_OF_HEADER, HEADER, PRIMARY_HEADER, Position, Requirement
from libs.common.models import NewTicket, Ticket
from libs.common.problems import Problem
from services.tickets import servers
from services.tickets.database import Database
from services.tickets.servers import LAG_SECONDS
from services.tickets.tickets import create_ticket, get_ticket
from tests.support.processes import TestedService
from tests.support.tickets import TicketsClient, TicketsDatabase, eventually

PAUSED = "SELECT pg_get_wal_replay_pause_state()"
REPLICAS = ("replica-1", "replica-2")
LEFT_OUT_SECONDS = 2  # what is promised


@contextlib.asynccontextmanager
async def paused_replay(stack: Stack, *names: str) -> AsyncIterator[None]:
    """These replicas, or all, do not replay what the primary writes."""
    names = names or REPLICAS
    connections = [await stack.parts[name].connect("postgres") for name in names]  # type: ignore[attr-defined]
    try:
        for connection in connections:
            await connection.execute("SELECT pg_wal_replay_pause()")

            async def is_paused(connection: asyncpg.Connection = connection) -> bool:
                return bool(await connection.fetchval(PAUSED) == "paused")

            await eventually(is_paused)
        yield
    finally:
        for connection in connections:
            await connection.execute("SELECT pg_wal_replay_resume()")
            await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def database(desk: TicketsDatabase) -> AsyncIterator[Database]:
    async with Database.open(desk.settings()) as opened:
        yield opened


async def caught_up(desk: TicketsDatabase, stack: Stack) -> None:
    """Every replica has everything that has been written so far."""
    target = await desk.superuser.fetchval("SELECT pg_current_wal_insert_lsn()")
    for url in stack.replica_urls:
        connection = await asyncpg.connect(url)

        async def reached(connection: asyncpg.Connection = connection) -> bool:
            return bool(await connection.fetchval("SELECT pg_last_wal_replay_lsn()") >= target)

        await eventually(reached)
        await connection.close()


async def test_a_read_with_a_writes_token_has_the_write_while_replicas_stand_still(
    stack: Stack, client: TicketsClient, desk: TicketsDatabase
) -> None:
    ticket = (await client.create("Old")).body
    path = f"/api/tickets/{ticket['id']}"
    await caught_up(desk, stack)
    async with paused_replay(stack):
        for version in range(1, 6):
            changed = await client.update(ticket["id"], version, title=f"New {version}")
            for _ in range(4):  # more reads than servers: all of them are asked
                read = await client.request("GET", path, headers={HEADER: changed.token})
                assert read.body == changed.body
                assert read.token >= changed.token
                assert read.headers[AS_OF_HEADER] >= changed.token
        fresh = (await client.create("Fresh")).body
        assert (await client.request("GET", f"/api/tickets/{fresh['id']}")).status == 200
        listed = await client.request("GET", "/api/tickets")
        assert listed.body["tickets"][0]["id"] == fresh["id"]

        # Without a token the replicas answer, with what they have; to the primary it is said in so many words.
        stale = await client.request("GET", path, headers={HEADER: ""})
        assert (stale.body["title"], stale.body.get("version")) == ("Old", 1), stale
        newest = await client.request("GET", path, headers={HEADER: "", PRIMARY_HEADER: "1"})
        assert newest.body == changed.body


async def test_what_an_answer_says_it_includes_it_includes(
    stack: Stack, client: TicketsClient, desk: TicketsDatabase
) -> None:
    """An answer from a replica is never marked as newer than a write that it lacks."""
    ticket = (await client.create("Old")).body
    await caught_up(desk, stack)
    async with paused_replay(stack):
        changed = await client.update(ticket["id"], 1, title="New")
        stale = await client.request("GET", f"/api/tickets/{ticket['id']}", headers={HEADER: ""})
        assert stale.body["title"] == "Old"
        assert stale.headers[AS_OF_HEADER] < changed.token


async def test_every_writer_reads_its_own_writes_from_any_server(client: TicketsClient) -> None:
    """Concurrent writers, each reading with its own token only; replicas run behind as they happen to."""
    tickets = [(await client.create()).body for _ in range(6)]

    async def write_and_read(ticket_id: str) -> None:
        for version in range(1, 15):
            changed = await client.update(ticket_id, version, title=f"{version}")
            assert changed.status == 200
            read = await client.request("GET", f"/api/tickets/{ticket_id}", headers={HEADER: changed.token})
            assert read.body == changed.body
            again = await client.request("GET", f"/api/tickets/{ticket_id}", headers={HEADER: read.token})
            assert again.body == changed.body

    await asyncio.gather(*(write_and_read(ticket["id"]) for ticket in tickets))


async def test_reads_take_turns_on_the_replicas(
    desk: TicketsDatabase, database: Database, stack: Stack, client: TicketsClient
) -> None:
    await all_usable(database)
    asked = [await server_of_a_read(database, client) for _ in range(4)]
    assert set(asked) == replica_ports(stack)
    assert asked[:2] == asked[2:]


async def test_a_replica_that_dies_costs_no_read(stack: Stack, database: Database, client: TicketsClient) -> None:
    created = await client.create()
    ticket_id = uuid.UUID(created.body["id"])
    organization_id = client.principal.organization_id
    await all_usable(database)
    try:
        for name in REPLICAS:
            stack.kill(name)
            await stack.wait_until_dead(name)
            for _ in range(6):
                found = await get_ticket(database, organization_id, ticket_id, Requirement())
                assert found.value.id == ticket_id
        assert await server_of_a_read(database, client) == stack.primary.port, "all of them are gone"
    finally:
        await asyncio.gather(*(stack.restart(name) for name in REPLICAS))
    await all_usable(database)
    assert {await server_of_a_read(database, client) for _ in range(4)} == replica_ports(stack)


async def test_a_replica_that_lags_is_left_out_within_two_seconds_and_returns(
    stack: Stack, database: Database, client: TicketsClient
) -> None:
    await all_usable(database)
    first, second = database.servers.replicas
    async with paused_replay(stack, "replica-1"):
        await client.create()

        async def left_out() -> bool:
            return not first.usable

        await eventually(left_out, seconds=LEFT_OUT_SECONDS)
        assert second.usable
        assert {await server_of_a_read(database, client) for _ in range(4)} == {stack.parts["replica-2"].port}
    await all_usable(database)
    assert {await server_of_a_read(database, client) for _ in range(4)} == replica_ports(stack)


async def test_an_idle_primary_makes_no_replica_lag(database: Database) -> None:
    await all_usable(database)
    await asyncio.sleep(2 * LAG_SECONDS)
    await all_usable(database)


async def test_a_replica_that_hangs_is_left_out_within_two_seconds_and_reads_are_done_elsewhere(
    stack: Stack, database: Database, client: TicketsClient
) -> None:
    await all_usable(database)
    for _ in range(4):
        await server_of_a_read(database, client)  # connections to both are open
    first, second = database.servers.replicas
    stack.pause("replica-1")
    try:
        # Several at once, so that some are sent to the one that hangs before anybody knows.
        async with asyncio.timeout(9):  # far less than a statement may take
            answers = await asyncio.gather(*(server_of_a_read(database, client) for _ in range(6)))
        assert set(answers) <= {stack.parts["replica-2"].port, stack.primary.port}

        async def left_out() -> bool:
            return first.standing is None

        await eventually(left_out, seconds=LEFT_OUT_SECONDS)
        assert second.usable
        assert {await server_of_a_read(database, client) for _ in range(4)} == {stack.parts["replica-2"].port}
    finally:
        stack.resume("replica-1")
    await all_usable(database)
    assert {await server_of_a_read(database, client) for _ in range(4)} == replica_ports(stack)


async def test_while_the_primary_is_down_replicas_answer_and_writes_are_refused_until_it_is_back(
    stack: Stack, desk: TicketsDatabase, database: Database, client: TicketsClient, service: TestedService
) -> None:
    created = await client.create("Before")
    path = f"/api/tickets/{created.body['id']}"
    await caught_up(desk, stack)
    await all_usable(database)
    stack.kill("postgres")
    try:
        await stack.wait_until_dead("postgres")
        await asyncio.sleep(2 * LAG_SECONDS)  # as long as you like: no replica lags behind a dead primary
        for token in ("", created.token):
            read = await client.request("GET", path, headers={HEADER: token})
            assert read.status == 200, read
            assert read.body == created.body
            assert read.token >= created.token
        refused = await client.request("POST", "/api/tickets", json={"title": "During"})
        assert (refused.status, refused.code) == (503, "service_unavailable")
        assert int(refused.headers["Retry-After"]) > 0
        newest = await client.request("GET", path, headers={PRIMARY_HEADER: "1"})
        assert newest.status == 503
    finally:
        await stack.restart("postgres")

    async def accepted() -> bool:
        answer = await client.request("POST", "/api/tickets", json={"title": "After"})
        assert answer.status in {201, 503}
        return answer.status == 201

    await eventually(accepted)
    await all_usable(database)


async def test_a_token_is_waited_for_shortly_where_replicas_are_about_to_have_it(
    stack: Stack, desk: TicketsDatabase, database: Database, client: TicketsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await all_usable(database)
    monkeypatch.setattr(servers, "WAIT_SECONDS", 20.0)
    for replica in database.servers.replicas:
        monkeypatch.setattr(replica, "_lag_seconds", 60.0)
    async with paused_replay(stack):
        position = Position.from_token((await client.create()).token)
        read = asyncio.create_task(server_of_a_read(database, client, Requirement(position)))

        async def waits() -> bool:
            return all(replica.waiting for replica in database.servers.replicas)

        await eventually(waits)
    assert await read in replica_ports(stack)
    assert not any(replica.waiting for replica in database.servers.replicas)


async def test_a_token_that_no_replica_gets_to_is_answered_by_the_primary_and_the_next_one_at_once(
    stack: Stack, database: Database, client: TicketsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await all_usable(database)
    for replica in database.servers.replicas:
        monkeypatch.setattr(replica, "_lag_seconds", 60.0)
    async with paused_replay(stack):
        position = Position.from_token((await client.create()).token)
        assert await server_of_a_read(database, client, Requirement(position)) == stack.primary.port
        monkeypatch.setattr(servers, "WAIT_SECONDS", 60.0)
        async with asyncio.timeout(30):
            assert await server_of_a_read(database, client, Requirement(position)) == stack.primary.port
        assert await server_of_a_read(database, client) in replica_ports(stack), "who needs nothing has them still"


async def test_a_token_of_the_next_timeline_is_a_promotion_that_was_not_noticed(client: TicketsClient) -> None:
    path = f"/api/tickets/{(await client.create()).body['id']}"
    token = (await client.request("GET", path)).token
    timeline = Position.from_token(token).timeline
    answers = [
        await client.request("GET", path, headers={HEADER: Position(timeline + ahead, 1).token()}) for ahead in (1, 2)
    ]
    assert [(answer.status, answer.code) for answer in answers] == [
        (503, "service_unavailable"),
        (400, "invalid_parameter"),
    ]
    assert "of a later timeline" in answers[0].body["detail"]


async def test_a_write_stands_at_a_position_that_a_replica_reaches(database: Database, desk: TicketsDatabase) -> None:
    (principal,) = await desk.organization()
    for _ in range(20):
        reply, position = await create_ticket(database, principal, NewTicket(title="x"))
        ticket = msgspec.json.decode(reply.body, type=Ticket)
        found = await get_ticket(database, principal.organization_id, ticket.id, Requirement(position))
        assert found.value == ticket
        assert position <= found.as_of <= found.consistency
    assert position > Position(1, 0)


async def test_reports_are_read_on_the_analytics_replica_and_nowhere_else(
    stack: Stack, desk: TicketsDatabase, client: TicketsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    organization_id = client.principal.organization_id
    async with Database.open(desk.settings(TICKETS_REPLICA_URLS="")) as database:
        analytics = database.servers.analytics
        assert analytics is not None

        async def usable() -> bool:
            return analytics.usable

        await eventually(usable)
        port = stack.parts["replica-1"].port
        assert (await database.report(organization_id, port_on)).value == port
        assert await server_of_a_read(database, client) == stack.primary.port, "it is for reports only"

        async def slow(connection: asyncpg.Connection) -> object:
            assert await connection.fetchval("SHOW statement_timeout") == "30s"
            await connection.execute("SET LOCAL statement_timeout = 50")
            return await connection.fetchval("SELECT pg_sleep(20)")

        assert await refusal(database.report(organization_id, slow)) == ("deadline_exceeded", "longer than 30 s")

        monkeypatch.setattr(analytics, "_lag_seconds", 0.2)
        async with paused_replay(stack, "replica-1"):
            await client.create()

            async def behind() -> bool:
                return not analytics.usable

            await eventually(behind)
            told = await refusal(database.report(organization_id, port_on))
            assert told == ("service_unavailable", "too far behind")
        await eventually(usable)
        stack.kill("replica-1")
        try:
            await stack.wait_until_dead("replica-1")
            for _ in range(2):  # before and after that was noticed
                told = await refusal(database.report(organization_id, port_on))
                assert told == ("service_unavailable", "does not answer")
                await eventually(behind)
        finally:
            await stack.restart("replica-1")
        await eventually(usable)
        assert (await database.report(organization_id, port_on)).value == port


async def test_without_an_analytics_replica_there_are_no_reports(desk: TicketsDatabase, client: TicketsClient) -> None:
    async with Database.open(desk.settings(TICKETS_ANALYTICS_URL="")) as database:
        told = await refusal(database.report(client.principal.organization_id, port_on))
        assert told == ("service_unavailable", "TICKETS_ANALYTICS_URL is not set")


async def refusal(work: Awaitable[object]) -> tuple[str, str]:
    """The code of the problem, and what of these it says."""
    with pytest.raises(Problem) as raised:
        await work
    known = ("does not answer", "too far behind", "TICKETS_ANALYTICS_URL is not set", "longer than 30 s")
    (said,) = [words for words in known if words in (raised.value.detail or "")]
    return raised.value.code, said


async def all_usable(database: Database) -> None:
    async def usable() -> bool:
        return all(replica.usable for replica in database.servers.replicas)

    await eventually(usable)


def replica_ports(stack: Stack) -> set[int]:
    return {stack.parts[name].port for name in REPLICAS}


async def server_of_a_read(database: Database, client: TicketsClient, requirement: Requirement | None = None) -> int:
    """The port of the server that answered."""
    found = await database.read(client.principal.organization_id, requirement or Requirement(), port_on)
    return found.value


async def port_on(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("SELECT inet_server_port()"))
