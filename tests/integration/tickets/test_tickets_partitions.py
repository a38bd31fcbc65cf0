"""Partitions: there before they are needed, gone when their time is over, and nobody waits for either."""

import asyncio
import datetime as dt
import itertools
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from libs.common.postgres import create_pool
from services.tickets import partitions
from services.tickets.database import APP_ROLE, IDENTITY_ROLE, MAINTENANCE_ROLE, RELAY_ROLE
from tests.support.tickets import TicketsDatabase, tickets_database

PARTITIONED = "SELECT partrelid::regclass::text FROM pg_partitioned_table"
BOUNDS = """
SELECT inhrelid::regclass::text AS name, pg_get_expr(relpartbound, inhrelid) AS bound
FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = $1::text::regclass ORDER BY 1"""
RECORD = """
INSERT INTO idempotency_records (organization_id, user_id, key_sha256, fingerprint, status, headers, body, created_at)
VALUES ($1, $1, '', '', 201, '{}', '', $2)"""
# A partition of a day that is over, as the days make them.
OLD_PARTITION = """
CREATE TABLE idempotency_records_old PARTITION OF idempotency_records FOR VALUES FROM ('{}') TO ('{}')"""


@pytest_asyncio.fixture
async def database(stack: Stack) -> AsyncIterator[TicketsDatabase]:
    async with tickets_database(stack) as made:
        yield made


async def names(database: TicketsDatabase, table: str) -> list[str]:
    return [row["name"] for row in await database.superuser.fetch(BOUNDS, table)]


async def test_every_partitioned_table_has_a_plan(database: TicketsDatabase) -> None:
    found = {row[0] for row in await database.superuser.fetch(PARTITIONED)}
    assert {table.table for table in partitions.plan(database.settings())} == found != set()


async def test_partitions_reach_ahead_without_gaps_and_are_made_once(database: TicketsDatabase) -> None:
    now = dt.datetime.now(dt.UTC)
    for table in partitions.plan(database.settings()):
        rows = await database.superuser.fetch(BOUNDS, table.table)
        edges = [row["bound"].removeprefix("FOR VALUES FROM ('").removesuffix("')").split("') TO ('") for row in rows]
        moments = [tuple(dt.datetime.fromisoformat(edge) for edge in pair) for pair in edges]
        assert moments[0][0] <= now
        assert all(end == start for (_, end), (start, _) in itertools.pairwise(moments))
        assert moments[-1][1] > now + table.ahead
    assert await partitions.maintain(database.settings()) == (0, 0)


async def test_what_is_missing_is_made_while_others_write(database: TicketsDatabase) -> None:
    expected = await names(database, "idempotency_records")
    for name in expected[1:]:
        await database.superuser.execute(f"DROP TABLE {name}")
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=3)
    with pytest.raises(asyncpg.CheckViolationError, match="no partition"):
        await database.superuser.execute(RECORD, uuid.uuid4(), later)
    async with database.superuser.acquire() as writer, writer.transaction():
        await writer.execute(RECORD, uuid.uuid4(), dt.datetime.now(dt.UTC))  # its locks are held until it ends
        made, _dropped = await partitions.maintain(database.settings())
    assert made == len(expected) - 1
    await database.superuser.execute(RECORD, uuid.uuid4(), later)
    assert await names(database, "idempotency_records") == expected


async def test_a_partition_is_dropped_when_its_last_row_is_too_old_and_not_before(database: TicketsDatabase) -> None:
    now = dt.datetime.now(dt.UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    # Ends 23 hours and more ago, or today at midnight: kept; the day before that ended over 24 hours ago.
    for back in (1, 2):
        start, end = today - dt.timedelta(days=back), today - dt.timedelta(days=back - 1)
        sql = OLD_PARTITION.replace("_old", f"_old{back}").format(start.isoformat(), end.isoformat())
        await database.superuser.execute(sql)
        await database.superuser.execute(RECORD, uuid.uuid4(), start)
    _made, dropped = await partitions.maintain(database.settings())
    found = await names(database, "idempotency_records")
    assert dropped == 1
    assert "idempotency_records_old1" in found
    assert "idempotency_records_old2" not in found
    assert await database.superuser.fetchval("SELECT count(*) FROM idempotency_records") == 1


async def test_history_is_kept_for_ever_unless_told_otherwise(database: TicketsDatabase) -> None:
    await database.superuser.execute(
        "CREATE TABLE ticket_history_old PARTITION OF ticket_history FOR VALUES FROM ('2020-01-01') TO ('2020-02-01')"
    )
    assert await partitions.maintain(database.settings()) == (0, 0)
    assert await partitions.maintain(database.settings(TICKETS_HISTORY_DAYS="3650")) == (0, 0)
    assert await partitions.maintain(database.settings(TICKETS_HISTORY_DAYS="365")) == (0, 1)


async def test_a_long_transaction_delays_the_drop_and_nobody_else(database: TicketsDatabase) -> None:
    await database.superuser.execute(OLD_PARTITION.format("2020-01-01", "2020-01-02"))
    async with database.superuser.acquire() as reader, reader.transaction():
        await reader.fetch("SELECT * FROM idempotency_records_old")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await partitions.maintain(database.settings())
    assert await partitions.maintain(database.settings()) == (0, 1)


@pytest.mark.parametrize("role", [APP_ROLE, IDENTITY_ROLE, RELAY_ROLE])
async def test_a_role_of_requests_can_neither_make_nor_drop(database: TicketsDatabase, role: str) -> None:
    url = database.environment["TICKETS_DATABASE_URL"]
    async with await create_pool(url, role=role, service="test", minimum=0, maximum=1) as pool:
        for call in ("make_partitions('audit_log', 'day', '1 day')", "drop_partitions('audit_log', '1 day')"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await pool.execute(f"SELECT {call}")


@pytest.mark.parametrize("statement", ["SELECT 1 FROM tickets", "SELECT 1 FROM ticket_history", "DROP TABLE outbox"])
async def test_the_role_of_partitions_can_nothing_else(database: TicketsDatabase, statement: str) -> None:
    url = database.environment["TICKETS_DATABASE_URL"]
    async with await create_pool(url, role=MAINTENANCE_ROLE, service="test", minimum=0, maximum=1) as pool:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(statement)
        for call in ("make_partitions('tickets', 'day', '1 day')", "drop_partitions('tickets', '1 day')"):
            with pytest.raises(asyncpg.RaiseError, match="no partitioned table"):
                await pool.execute(f"SELECT {call}")


async def test_the_command_says_what_it_did(database: TicketsDatabase) -> None:
    (last, *_rest) = reversed(await names(database, "audit_log"))
    await database.superuser.execute(f"DROP TABLE {last}")
    done = await asyncio.to_thread(_maintain, database.environment)
    assert (done.returncode, done.stdout) == (0, "1 partitions made, 0 dropped.\n"), done.stderr
    gone = database.environment | {"TICKETS_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}
    failed = await asyncio.to_thread(_maintain, gone)
    assert failed.returncode == 3
    assert failed.stderr.startswith("The partitions were not maintained: ")
    assert "Traceback" not in failed.stderr


def _maintain(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "services.tickets", "maintain"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
