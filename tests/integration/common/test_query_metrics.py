"""Every statement is counted once under what it does and where, whatever becomes of it."""

# ruff: noqa: S608 (the name of a test's own table)
import asyncio
import contextlib
import random
import string
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from libs.common.metrics import DB_QUERY_DURATION
from libs.common.postgres import connect, create_pool

ROLE = "postgres"
Statement = Callable[[asyncpg.Connection, str], Awaitable[Any]]


@pytest_asyncio.fixture(loop_scope="session")
async def connection(stack: Stack) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(stack.primary.url(superuser=True), role=ROLE, service="test")
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def table(connection: asyncpg.Connection) -> str:
    """A table whose name nobody else has, with one row."""
    name = "measured_" + "".join(random.choices(string.ascii_lowercase, k=12))
    await connection.execute(f"CREATE TEMPORARY TABLE {name} AS SELECT 1 AS number")
    return name


def of(table: str, suffix: str = "_count") -> dict[str, float]:
    """What was observed of a table, by the kind of statement."""
    return {
        sample.labels["query_type"]: sample.value
        for metric in DB_QUERY_DURATION.collect()
        for sample in metric.samples
        if sample.name.endswith(suffix) and sample.labels["table"] == table
    }


STATEMENTS: list[Statement] = [
    lambda connection, table: connection.execute(f"SELECT number FROM {table}"),
    lambda connection, table: connection.execute(f"SELECT number FROM {table} WHERE number = $1", 1),
    lambda connection, table: connection.fetch(f"SELECT number FROM {table} WHERE number = $1", 1),
    lambda connection, table: connection.fetchrow(f"SELECT number FROM {table} WHERE number = $1", 1, timeout=10),
    lambda connection, table: connection.fetchval(f"SELECT 2, number FROM {table} WHERE number = $1", 1, column=1),
]
NAMES = ["execute", "execute with arguments", "fetch", "fetchrow", "fetchval"]


@pytest.mark.parametrize("statement", STATEMENTS, ids=NAMES)
async def test_a_statement_is_observed_once(connection: asyncpg.Connection, table: str, statement: Statement) -> None:
    for number in range(1, 4):
        found = await statement(connection, table)
        assert found in ("SELECT 1", 1) or list(found) in ([1], [(1,)])
        assert of(table) == {"select": number}


@pytest.mark.parametrize("name", ["execute", "fetch", "fetchrow", "fetchval"])
async def test_a_statement_that_fails_is_observed_as_well(
    connection: asyncpg.Connection, table: str, name: str
) -> None:
    method = getattr(connection, name)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await method(f"UPDATE {table} SET number = number / $1", 0)
    assert of(table) == {"update": 1}
    with pytest.raises(asyncpg.UndefinedColumnError):
        await method(f"DELETE FROM {table} WHERE missing")
    assert of(table) == {"update": 1, "delete": 1}
    with pytest.raises(TimeoutError):
        await method(f"SELECT pg_sleep(60) FROM {table}", timeout=0.05)
    assert of(table) == {"update": 1, "delete": 1, "select": 1}
    cancelled = asyncio.create_task(method(f"INSERT INTO {table} SELECT 1 FROM pg_sleep(60)"))
    await asyncio.sleep(0)  # it has begun
    cancelled.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await cancelled
    assert of(table) == {"update": 1, "delete": 1, "select": 1, "insert": 1}


async def test_a_duration_is_in_milliseconds(connection: asyncpg.Connection, table: str) -> None:
    """At least what the server takes, and less than all of the test."""
    started = asyncio.get_running_loop().time()
    await connection.fetchval(f"SELECT pg_sleep(0.05) FROM {table}")
    passed = (asyncio.get_running_loop().time() - started) * 1000
    assert 50 <= of(table, "_sum")["select"] <= passed


async def test_a_pools_connections_are_measured_once_they_are_ready(stack: Stack, table: str) -> None:
    url = stack.primary.url(superuser=True)
    ready = of("none").get("select", 0)
    warm_up = ("SELECT 1",)
    async with await create_pool(url, role=ROLE, service="test", minimum=2, maximum=2, prepare=warm_up) as pool:
        assert of("none").get("select", 0) == ready
        async with pool.acquire() as first, pool.acquire() as second:
            for number, connection in enumerate((first, second), start=1):
                with pytest.raises(asyncpg.UndefinedTableError):  # it is another session's
                    await connection.fetchval(f"SELECT 1 FROM {table}")
                assert of(table) == {"select": number}
