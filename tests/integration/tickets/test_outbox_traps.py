"""Designs of an outbox that lose or invert events: each is tried beside ours, and the check that clears ours finds it.

The races are run until they happen; where the order of the steps can be given, it is.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
import pytest_asyncio

from libs.common.identity import Principal
from libs.common.migrations import read
from libs.common.models import NewComment, NewTicket
from services.tickets import store_bulk, store_comments, store_relay, store_tickets
from services.tickets.comments import add_comment
from services.tickets.database import Database
from services.tickets.paths import MIGRATIONS
from services.tickets.relay import LEASE
from services.tickets.tickets import create_ticket
from tests.support.tickets import TicketsDatabase

WRITERS = 12
TICKETS = 3
ROUNDS = 40  # of a wrong design, at most: one race in a round is certain enough

# Versions of one ticket whose positions are not in their order.
INVERSIONS = """
SELECT count(*) FROM (
    SELECT position < lag(position) OVER (PARTITION BY ticket_id ORDER BY version) AS inverted FROM outbox
) AS pairs WHERE inverted"""
BUMP = "UPDATE tickets SET version = version + 1 WHERE id = $1 RETURNING version, organization_id"
INSERT_OUTBOX = """
INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, created_at, position)
VALUES ($1, $2, $3, 0, gen_random_uuid(), 'ticket.updated.v1', '{}', now(), coalesce($4, nextval('outbox_position')))"""
READ_IN_ORDER_OF_TRANSACTIONS = """
SELECT ticket_id, version FROM outbox WHERE xmin::text::bigint < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
ORDER BY xmin::text::bigint, position"""
READ_BEHIND_CURSOR = "SELECT position, ticket_id, version FROM outbox WHERE position > $1 ORDER BY position"
READ_UNLOCKED = "SELECT version FROM outbox ORDER BY position LIMIT 2 FOR UPDATE SKIP LOCKED"
# Whatever in the schema could tell listeners of a write, in its own transaction.
NOTIFYING = """
SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosrc ~* 'notify'
UNION SELECT rulename FROM pg_rules WHERE definition ~* 'notify'"""

Comment = Callable[[uuid.UUID], Awaitable[object]]


@pytest_asyncio.fixture(loop_scope="session")
async def database(outbox: TicketsDatabase) -> AsyncIterator[Database]:
    async with Database.open(outbox.settings(TICKETS_POOL_MAXIMUM=str(WRITERS))) as opened:
        yield opened


async def new_tickets(outbox: TicketsDatabase, database: Database, principal: Principal, count: int) -> list[uuid.UUID]:
    for number in range(count):
        await create_ticket(database, principal, NewTicket(title=f"Ticket {number}"))
    return [row["id"] for row in await outbox.superuser.fetch("SELECT id FROM tickets ORDER BY number")]


async def inversions_of(outbox: TicketsDatabase, tickets: list[uuid.UUID], write: Comment, *, rounds: int) -> int:
    """Let many write to the same tickets, until an inversion is found or `rounds` are over."""
    for _ in range(rounds):
        await asyncio.gather(*(write(tickets[n % len(tickets)]) for n in range(WRITERS * 4)))
        if found := int(await outbox.superuser.fetchval(INVERSIONS)):
            return found
    return 0


async def test_positions_of_a_ticket_follow_its_versions_under_concurrent_writers(
    outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    tickets = await new_tickets(outbox, database, principal, TICKETS)

    async def write(ticket: uuid.UUID) -> None:
        await add_comment(database, principal, ticket, NewComment("And another thing"))

    assert await inversions_of(outbox, tickets, write, rounds=10) == 0
    assert await outbox.superuser.fetchval("SELECT count(*) FROM outbox") == TICKETS + 10 * WRITERS * 4
    assert await outbox.superuser.fetchval("SELECT cache_size FROM pg_sequences") == 1


async def test_a_cached_sequence_would_invert_versions(
    outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    """The same writers, the same statements, another sequence: every connection draws positions in advance."""
    tickets = await new_tickets(outbox, database, principal, TICKETS)
    await outbox.superuser.execute("ALTER SEQUENCE outbox_position CACHE 20")

    async def write(ticket: uuid.UUID) -> None:
        await add_comment(database, principal, ticket, NewComment("And another thing"))

    assert await inversions_of(outbox, tickets, write, rounds=ROUNDS) > 0


@pytest.mark.parametrize("before_the_lock", [True, False], ids=["before the lock", "after the lock"])
async def test_a_position_that_is_drawn_before_the_row_lock_would_invert_versions(
    outbox: TicketsDatabase, database: Database, principal: Principal, *, before_the_lock: bool
) -> None:
    tickets = await new_tickets(outbox, database, principal, 1)
    first, second = [await asyncpg.connect(dsn(outbox)) for _ in range(2)]

    async def draw(connection: asyncpg.Connection) -> int | None:
        return int(await connection.fetchval("SELECT nextval('outbox_position')")) if before_the_lock else None

    async def write(connection: asyncpg.Connection, position: int | None) -> None:
        row = await connection.fetchrow(BUMP, tickets[0])
        await connection.execute(INSERT_OUTBOX, row["organization_id"], tickets[0], row["version"], position)

    try:
        async with first.transaction():
            position = await draw(first)
            async with second.transaction():  # it comes later and is done earlier
                await write(second, await draw(second))
            await write(first, position)
        found = await outbox.superuser.fetchval(INVERSIONS)
    finally:
        await asyncio.gather(first.close(), second.close())
    assert found == (1 if before_the_lock else 0)


async def test_a_cursor_would_lose_what_commits_late_and_reading_the_rows_that_exist_does_not(
    outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    early, late = await new_tickets(outbox, database, principal, 2)
    reader, writer = [await asyncpg.connect(dsn(outbox)) for _ in range(2)]
    try:
        everything = await reader.fetch(READ_BEHIND_CURSOR, 0)
        last = everything[-1]["position"]
        shards = list(range(64))
        mine = await store_relay.claim_leases(reader, uuid.UUID(int=1), LEASE, 64)

        async def published() -> list[tuple[uuid.UUID, int]]:
            rows = await store_relay.select_rows(reader, shards, 100)
            await store_relay.delete_rows(reader, uuid.UUID(int=1), mine, [row["position"] for row in rows])
            return [(row["ticket_id"], row["version"]) for row in rows]

        await published()
        async with writer.transaction():
            row = await writer.fetchrow(BUMP, late)
            await writer.execute(INSERT_OUTBOX, row["organization_id"], late, row["version"], None)
            await add_comment(database, principal, early, NewComment("Later, and committed earlier"))
            seen = await reader.fetch(READ_BEHIND_CURSOR, last)
            assert [(row["ticket_id"], row["version"]) for row in seen] == [(early, 2)]
            last = seen[-1]["position"]
            assert await published() == [(early, 2)]
        assert await reader.fetch(READ_BEHIND_CURSOR, last) == [], "the cursor has passed it"
        assert await published() == [(late, 2)]
    finally:
        await asyncio.gather(reader.close(), writer.close())


async def test_the_order_of_transactions_would_invert_versions_and_an_open_one_would_stall_it(
    outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    (ticket,) = await new_tickets(outbox, database, principal, 1)
    reader, writer = [await asyncpg.connect(dsn(outbox)) for _ in range(2)]
    try:
        async with writer.transaction():
            await writer.execute("SELECT pg_current_xact_id()")  # it begins early
            await add_comment(database, principal, ticket, NewComment("Version 2"))
            by_transaction = [row["version"] for row in await reader.fetch(READ_IN_ORDER_OF_TRANSACTIONS)]
            assert by_transaction == [1], "the open one hides what is committed"
            rows = await store_relay.select_rows(reader, list(range(64)), 100)
            assert [row["version"] for row in rows] == [1, 2]
            row = await writer.fetchrow(BUMP, ticket)
            await writer.execute(INSERT_OUTBOX, row["organization_id"], ticket, row["version"], None)
        by_transaction = [row["version"] for row in await reader.fetch(READ_IN_ORDER_OF_TRANSACTIONS)]
        assert by_transaction == [1, 3, 2]
        ordered = await reader.fetch(store_relay.SELECT_ROWS, list(range(64)), 100)
        assert [row["version"] for row in ordered] == [1, 2, 3]
    finally:
        await asyncio.gather(reader.close(), writer.close())


async def test_two_relays_that_skip_locked_rows_would_share_a_ticket_and_two_with_leases_do_not(
    outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    (ticket,) = await new_tickets(outbox, database, principal, 1)
    for version in range(2, 5):
        await add_comment(database, principal, ticket, NewComment(f"Version {version}"))
    one, two = [await asyncpg.connect(dsn(outbox)) for _ in range(2)]
    try:
        async with one.transaction(), two.transaction():
            held = [row["version"] for row in await one.fetch(READ_UNLOCKED)]
            overtaking = [row["version"] for row in await two.fetch(READ_UNLOCKED)]
            assert (held, overtaking) == ([1, 2], [3, 4])
        first = await store_relay.claim_leases(one, uuid.uuid4(), LEASE, 32)
        second = await store_relay.claim_leases(two, uuid.uuid4(), LEASE, 64)
        assert not first.keys() & second.keys()
        assert len(first) + len(second) == 64
        rows = [await store_relay.select_rows(one, list(shards), 100) for shards in (first, second)]
        assert sorted(len(found) for found in rows) == [0, 4], "one of them has the ticket, all of it"
    finally:
        await asyncio.gather(one.close(), two.close())


async def test_no_write_notifies_anybody_in_its_transaction(outbox: TicketsDatabase) -> None:
    """Measured: pg_notify takes a lock of the whole cluster at COMMIT and costs most of the commit rate."""
    assert await outbox.superuser.fetch(NOTIFYING) == []
    statements = [
        value
        for module in (store_bulk, store_comments, store_relay, store_tickets)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    ]
    migrations = [migration.sql for migration in read(MIGRATIONS)]
    assert len(statements) > 10
    assert not [text for text in statements + migrations if "notify" in text.lower()]
    await outbox.superuser.execute(
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN PERFORM pg_notify('outbox', ''); RETURN NULL; END$$"
    )
    assert [row["proname"] for row in await outbox.superuser.fetch(NOTIFYING)] == ["tell"]


def dsn(outbox: TicketsDatabase) -> str:
    """The database as its superuser: the wrong designs are written by hand."""
    return str(outbox.superuser._connect_args[0])
