"""Connections to PostgreSQL: pools, tenant transactions, query metrics.

A pool logs in as one user and takes on a role (`SET ROLE` as a startup parameter), so that every statement runs
without ownership and row-level security applies even when the login owns the tables.

An address may name several hosts, `postgresql://user:password@one:5432,two:5432/name`: the one that takes writes is
looked for whenever a connection is made, so a promotion is followed.
"""

import asyncio
import contextlib
import urllib.parse
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from libs.common import background
from libs.common.problems import Problem, unavailable
from libs.common.query_metrics import MeasuredConnection

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 600.0
USES_PER_CONNECTION = 5000
ACQUIRE_SECONDS = 5.0
STATEMENT_SECONDS = 10.0
LOCK_SECONDS = 3.0
IDLE_IN_TRANSACTION_SECONDS = 30.0
ROLLBACK_SECONDS = 2.0
# The server ends a statement by itself; the client gives it this much longer before it cancels.
_GRACE_SECONDS = 1.0
_CACHED_STATEMENTS = 200  # a connection; every statement is one of a finite set

# What the driver raises when the server is away, starting, stopping, out of connections or of patience with a lock.
UNAVAILABLE_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a statement on a connection whose server has just said that it ends it
)

Check = Callable[[asyncpg.Connection], Awaitable[None]]


class _Hosts:
    """The hosts of an address. Connects to the first that is what was asked for; begins with that of last time.

    The driver goes through several hosts by itself, but one that accepts and never answers takes all of its time.
    """

    def __init__(self, url: str, check: Check | None) -> None:
        parsed = urllib.parse.urlsplit(url)
        login, at, hosts = parsed.netloc.rpartition("@")
        self._urls = [parsed._replace(netloc=f"{login}{at}{host}").geturl() for host in hosts.split(",")]
        self._check = check
        self._first = 0

    async def connect(self, _url: str, *, timeout: float, **options: Any) -> asyncpg.Connection:
        failure: Exception = OSError("the address has no host")
        for number in range(self._first, self._first + len(self._urls)):
            host = number % len(self._urls)
            try:
                connection = await asyncpg.connect(self._urls[host], timeout=timeout / len(self._urls), **options)
                await self._checked(connection)
            except UNAVAILABLE_ERRORS as error:
                failure = error
            else:
                self._first = host
                return connection
        raise failure

    async def _checked(self, connection: asyncpg.Connection) -> None:
        if self._check is not None:
            try:
                await self._check(connection)
            except BaseException:
                connection.terminate()
                raise


async def _warm_up(connection: asyncpg.Connection, statements: Sequence[str]) -> None:
    """Prepare statements without running them, so that the first request need not wait for that."""
    with contextlib.suppress(asyncpg.SyntaxOrAccessError):  # a replica may not have replayed the schema's last change
        for statement in statements:
            await connection.executemany(statement, [])
    if statements:
        # The driver has sent no Sync, so the transaction that preparing began is still open; any query ends it.
        await connection.execute("SELECT 1")


async def _on_release(connection: asyncpg.Connection) -> None:
    # asyncpg's own reset costs a round trip; settings are made with SET LOCAL only, so ending a transaction is enough.
    if connection.is_in_transaction():
        await connection.execute("ROLLBACK")


async def create_pool(
    url: str,
    *,
    role: str,
    service: str,
    minimum: int = 10,
    maximum: int = 50,
    writes: bool = True,
    statement_seconds: float = STATEMENT_SECONDS,
    prepare: Sequence[str] = (),
    check: Check | None = None,
) -> asyncpg.Pool:
    """Open a pool whose connections act as `role`, on a server that takes writes unless `writes` is false.

    10 to 50 connections, closed after 10 idle minutes, 5 s to connect, recycled after 5,000 uses. The server ends a
    statement after `statement_seconds`, one that waits for a lock after 3 s, and a session that leaves its transaction
    open after 30 s. `prepare`: the statements that every new connection prepares at once. `check` looks at a new
    connection and raises one of UNAVAILABLE_ERRORS for a server that is not to be used.

    Raises:
        OSError, asyncpg.PostgresError: when the first connections cannot be made.
    """

    async def initialise(connection: asyncpg.Connection) -> None:
        await _warm_up(connection, prepare)
        connection.measure()

    return await asyncpg.create_pool(
        url,
        connect=_Hosts(url, check).connect,
        min_size=minimum,
        max_size=maximum,
        max_queries=USES_PER_CONNECTION,
        max_inactive_connection_lifetime=IDLE_SECONDS,
        init=initialise,
        reset=_on_release,
        **_options(role=role, service=service, writes=writes, statement_seconds=statement_seconds),
    )


async def connect(
    url: str, *, role: str, service: str, writes: bool = True, check: Check | None = None
) -> asyncpg.Connection:
    """One connection like those of a pool, for who needs it all of the time.

    Raises:
        OSError, asyncpg.PostgresError: when it cannot be made within 5 s.
    """
    options = _options(role=role, service=service, writes=writes, statement_seconds=STATEMENT_SECONDS)
    connection = await _Hosts(url, check).connect(url, **options)
    connection.measure()
    return connection


def _options(*, role: str, service: str, writes: bool, statement_seconds: float) -> dict[str, Any]:
    return {
        "timeout": CONNECT_SECONDS,
        "command_timeout": statement_seconds + _GRACE_SECONDS,
        "connection_class": MeasuredConnection,
        "target_session_attrs": "read-write" if writes else "any",
        "statement_cache_size": _CACHED_STATEMENTS,
        "max_cached_statement_lifetime": 0,  # as long as the connection
        "server_settings": {
            "application_name": f"relaydesk-{service}",
            "role": role,
            "timezone": "UTC",
            "statement_timeout": _milliseconds(statement_seconds),
            "lock_timeout": _milliseconds(LOCK_SECONDS),
            "idle_in_transaction_session_timeout": _milliseconds(IDLE_IN_TRANSACTION_SECONDS),
        },
    }


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))


def is_open(connection: asyncpg.Connection) -> bool:
    """Whether a connection, a pool's as well, has not been closed."""
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # the pool has taken note of its end already
        return False


def end(connection: asyncpg.Connection) -> None:
    """Close a connection without telling the server, unless it is closed."""
    with contextlib.suppress(asyncpg.InterfaceError):
        connection.terminate()


class given_up_after:  # noqa: N801 (called like a function, as contextlib's own)
    """End the connection when the block lasts longer; whoever waits for it gets ConnectionDoesNotExistError.

    Unlike a timeout of the driver it asks nothing of the server, which may not answer.
    """

    __slots__ = ("_deadline",)

    def __init__(self, connection: asyncpg.Connection, seconds: float) -> None:
        self._deadline = asyncio.get_running_loop().call_later(seconds, end, connection)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_error: object) -> None:
        self._deadline.cancel()


class transaction_on:  # noqa: N801 (called like a function; a generator would cost a read 2 %)
    """One transaction within one tenant (None: a role that has no tenant, such as the relay's).

    A read-only one sees a single snapshot. `BEGIN` and the tenant's setting share a round trip. A cancelled caller
    never leaves a COMMIT half-waited: cancelling a wait for synchronous replication would commit locally only.
    """

    __slots__ = ("_begin", "_connection", "_read_only")

    def __init__(
        self, connection: asyncpg.Connection, *, organization_id: uuid.UUID | None, read_only: bool = False
    ) -> None:
        self._connection = connection
        self._read_only = read_only
        self._begin = "BEGIN READ ONLY, ISOLATION LEVEL REPEATABLE READ" if read_only else "BEGIN"
        if organization_id is not None:
            # The simple protocol takes no parameters; a number in hexadecimal digits needs no quoting.
            self._begin += f"; SELECT set_config('relaydesk.organization_id', '{organization_id.int:032x}', true)"

    async def __aenter__(self) -> None:
        try:
            await self._connection.execute(self._begin)
        except BaseException:  # cancelled, the server may have begun it all the same
            await _roll_back(self._connection)
            raise

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            await _roll_back(self._connection)
        elif self._read_only:
            await self._connection.execute("COMMIT")  # it leaves nothing half done
        else:
            await background.finish(_commit(self._connection))


async def _commit(connection: asyncpg.Connection) -> None:
    """COMMIT, which nothing cancels, a timeout neither.

    A cancelled wait for a synchronous standby commits on this server only: everybody would see what a promotion may
    lose. When the connection is given up instead, the server goes on waiting, and nobody sees it before.
    """
    with given_up_after(connection, STATEMENT_SECONDS):
        await connection.execute("COMMIT", timeout=STATEMENT_SECONDS * 2)


async def _roll_back(connection: asyncpg.Connection) -> None:
    if not is_open(connection):
        return
    try:
        await background.finish(connection.execute("ROLLBACK", timeout=ROLLBACK_SECONDS))
    except (asyncpg.PostgresError, *UNAVAILABLE_ERRORS):
        end(connection)


def translate_error(error: Exception) -> Problem | None:
    """The problem a client is told when the database, or what stands in for it, is not there."""
    return unavailable("The database") if isinstance(error, UNAVAILABLE_ERRORS) else None
