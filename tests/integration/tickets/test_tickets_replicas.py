"""Read positions: a read with the token of a write has the write, whatever the replicas have."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest_asyncio

from infra.local.stack import Stack
from libs.common.consistency import AS_OF_HEADER, HEADER, PRIMARY_HEADER, Position, Requirement
from libs.common.models import NewTicket
from services.tickets.database import Database
from services.tickets.tickets import create_ticket, get_ticket
from tests.support.tickets import TicketsClient, TicketsDatabase, eventually

PAUSED = "SELECT pg_get_wal_replay_pause_state()"


@contextlib.asynccontextmanager
async def paused_replay(stack: Stack) -> AsyncIterator[None]:
    """No replica replays what the primary writes."""
    names = [name for name in stack.parts if name.startswith("replica-")]
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
        assert (stale.body["title"], stale.body["version"]) == ("Old", 1)
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
    await caught_up(desk, stack)
    await eventually(_all_seen(database))

    async def port_of_replica(connection: asyncpg.Connection) -> int:
        assert await connection.fetchval("SELECT pg_is_in_recovery()")
        return int(await connection.fetchval("SELECT inet_server_port()"))

    ports = {
        (await database.read(client.principal.organization_id, Requirement(), port_of_replica)).value for _ in range(4)
    }
    assert len(ports) == len(stack.replica_urls) == 2


async def test_a_replica_that_dies_costs_no_read(
    stack: Stack, desk: TicketsDatabase, database: Database, client: TicketsClient
) -> None:
    created = await client.create()
    ticket_id = uuid.UUID(created.body["id"])
    organization_id = client.principal.organization_id
    await caught_up(desk, stack)
    await eventually(_all_seen(database))
    try:
        for name in ("replica-1", "replica-2"):
            stack.kill(name)
            await stack.wait_until_dead(name)
            for _ in range(6):
                found = await get_ticket(database, organization_id, ticket_id, Requirement())
                assert found.value.id == ticket_id
    finally:
        await asyncio.gather(stack.restart("replica-1"), stack.restart("replica-2"))
    await eventually(_all_seen(database))


async def test_a_write_stands_at_a_position_that_a_replica_reaches(database: Database, desk: TicketsDatabase) -> None:
    (principal,) = await desk.organization()
    for _ in range(20):
        ticket, position = await create_ticket(database, principal, NewTicket(title="x"))
        found = await get_ticket(database, principal.organization_id, ticket.id, Requirement(position))
        assert found.value == ticket
        assert position <= found.as_of <= found.consistency
    assert position > Position(1, 0)


def _all_seen(database: Database) -> Callable[[], object]:
    async def seen() -> bool:
        return all(server.position is not None for server in (database._primary, *database._replicas))

    return seen
