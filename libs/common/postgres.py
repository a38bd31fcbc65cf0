"""Connections to PostgreSQL: pools, tenant transactions, query metrics.

A pool logs in as one user and takes on a role (`SET ROLE` as a startup parameter), so that every statement runs
without ownership and row-level security applies even when the login owns the tables.
"""

import contextlib
import re
import uuid
from collections.abc import AsyncIterator

import asyncpg
from prometheus_client import Histogram

from libs.common import background
from libs.common.metrics import DB_QUERY_DURATION
from libs.common.problems import Problem, unavailable

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 600.0
USES_PER_CONNECTION = 5000
ACQUIRE_SECONDS = 5.0
STATEMENT_SECONDS = 10.0

# What the driver raises when the server is away, starting, stopping or out of connections.
UNAVAILABLE_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a statement on a connection whose server has just said that it ends it
)

# A write, with the table it goes to ("FOR UPDATE" and "DO UPDATE SET" are none), and what a SELECT reads from (a
# name before a parenthesis is a function).
_WRITE = re.compile(
    r"\b(?:(insert)\s+into|(delete)\s+from|(update))\s+(?:only\s+)?([a-z_]+)(?(3)(?:\s+(?:as\s+)?[a-z_]+)?\s+set\b)",
    re.IGNORECASE,
)
_READ = re.compile(r"\bfrom\s+(?:only\s+)?([a-z_]+)\b(?!\s*\()", re.IGNORECASE)


class _QueryMetrics:
    """asyncpg's query logger: observes `db_query_duration_ms`, its labels read once from each statement."""

    def __init__(self) -> None:
        self._children: dict[str, Histogram] = {}

    def __call__(self, query: asyncpg.connection.LoggedQuery) -> None:
        child = self._children.get(query.query)
        if child is None:
            child = DB_QUERY_DURATION.labels(*statement_labels(query.query))
            if len(self._children) < 1000:  # statements are constants; a bound all the same
                self._children[query.query] = child
        child.observe(query.elapsed * 1000)


def statement_labels(sql: str) -> tuple[str, str]:
    """`(query_type, table)` of a statement: its first write, else its first read, and the table of that."""
    verb = sql.split(None, 1)[0].lower().rstrip(";") if sql.strip() else "none"
    if verb == "begin":
        return verb, "none"
    if write := _WRITE.search(sql):
        return (write[1] or write[2] or write[3]).lower(), write[4].lower()
    if read := _READ.search(sql):
        return "select", read[1].lower()
    return verb, "none"


_metrics = _QueryMetrics()


async def _on_connect(connection: asyncpg.Connection) -> None:
    connection.add_query_logger(_metrics)


async def _on_release(connection: asyncpg.Connection) -> None:
    # asyncpg's own reset costs a round trip; settings are made with SET LOCAL only, so ending a transaction is enough.
    if connection.is_in_transaction():
        await connection.execute("ROLLBACK")


async def create_pool(url: str, *, role: str, service: str, minimum: int = 10, maximum: int = 50) -> asyncpg.Pool:
    """Open a pool whose connections act as `role`.

    10 to 50 connections, closed after 10 idle minutes, 5 s to connect, recycled after 5,000 uses; statements are
    prepared and end after 10 s.

    Raises:
        OSError, asyncpg.PostgresError: when the first connections cannot be made.
    """
    return await asyncpg.create_pool(
        url,
        min_size=minimum,
        max_size=maximum,
        timeout=CONNECT_SECONDS,
        max_queries=USES_PER_CONNECTION,
        max_inactive_connection_lifetime=IDLE_SECONDS,
        command_timeout=STATEMENT_SECONDS,
        init=_on_connect,
        reset=_on_release,
        server_settings={"application_name": f"relaydesk-{service}", "role": role, "timezone": "UTC"},
    )


@contextlib.asynccontextmanager
async def transaction(
    pool: asyncpg.Pool, *, organization_id: uuid.UUID | None, read_only: bool = False
) -> AsyncIterator[asyncpg.Connection]:
    """One transaction on a connection of the pool; see `transaction_on`.

    Raises:
        TimeoutError: when no connection is free within 5 s.
    """
    async with (
        pool.acquire(timeout=ACQUIRE_SECONDS) as connection,
        transaction_on(connection, organization_id=organization_id, read_only=read_only),
    ):
        yield connection


@contextlib.asynccontextmanager
async def transaction_on(
    connection: asyncpg.Connection, *, organization_id: uuid.UUID | None, read_only: bool = False
) -> AsyncIterator[None]:
    """One transaction within one tenant (None: a role that has no tenant, such as the relay's).

    A read-only one sees a single snapshot. `BEGIN` and the tenant's setting share a round trip. A cancelled caller
    never leaves a COMMIT half-waited: cancelling a wait for synchronous replication would commit locally only.
    """
    begin = "BEGIN READ ONLY, ISOLATION LEVEL REPEATABLE READ" if read_only else "BEGIN"
    if organization_id is not None:
        # A UUID's text form needs no quoting; the simple protocol takes no parameters.
        begin += f"; SELECT set_config('relaydesk.organization_id', '{uuid.UUID(str(organization_id))}', true)"
    await connection.execute(begin)
    try:
        yield
    except BaseException:
        if not connection.is_closed():
            await background.finish(connection.execute("ROLLBACK"))
        raise
    await background.finish(connection.execute("COMMIT"))


def translate_error(error: Exception) -> Problem | None:
    """The problem a client is told when the database, or what stands in for it, is not there."""
    return unavailable("The database") if isinstance(error, UNAVAILABLE_ERRORS) else None
