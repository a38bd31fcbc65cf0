"""Transactions: where each goes, and what its answer is known to include.

Two positions of the write-ahead log go with every read. `as_of` is a lower bound: everything that had been told to
anybody at or before it is included. `consistency` is an upper bound: nothing in the answer is newer. The first lets
a cache decide whether an entry is new enough for a reader, the second is what the reader is told.
"""

import contextlib
import dataclasses
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import asyncpg
import structlog

from libs.common import background
from libs.common.consistency import Position, Requirement
from libs.common.lending import Lending
from libs.common.migrations import require_current
from libs.common.postgres import (
    ACQUIRE_SECONDS,
    UNAVAILABLE_ERRORS,
    connect,
    create_pool,
    given_up_after,
    transaction_on,
)
from libs.common.problems import Problem
from services.tickets import store_servers
from services.tickets.paths import MIGRATIONS
from services.tickets.servers import Fence, Primary, Replica, Server, Servers
from services.tickets.settings import DatabaseSettings
from services.tickets.shares import Shares
from services.tickets.store_servers import READ_POSITION, SERVER_POSITION

APP_ROLE = "tickets_app"
IDENTITY_ROLE = "tickets_identity"
RELAY_ROLE = "tickets_relay"
MAINTENANCE_ROLE = "tickets_maintenance"

# A replica that does not answer costs a read this long, then it is done again elsewhere.
REPLICA_SECONDS = 2.0
REPORT_SECONDS = 30.0
REPORT_WAIT_SECONDS = 2.0
REPORT_LAG_SECONDS = 300.0
REPORT_CONNECTIONS = 10

# A replica that failed, or that ended a read because it stood in the way of what was to be replayed.
_ELSEWHERE = (asyncpg.TransactionRollbackError, *UNAVAILABLE_ERRORS)

T = TypeVar("T")
log = structlog.get_logger()
Work = Callable[[asyncpg.Connection], Awaitable[T]]


class Write:
    """A transaction on the primary. `position`, read after COMMIT, includes the write."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.position: Position


@dataclasses.dataclass(frozen=True)
class Found(Generic[T]):
    """What a read found, with the two positions of its answer."""

    value: T
    as_of: Position
    consistency: Position


@dataclasses.dataclass(frozen=True)
class HotStatements:
    """What every new connection prepares at once, by what it is used for."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()


_NOTHING_HOT = HotStatements()


class Database:
    """The tickets database as the application role sees it. Open with `async with Database.open(settings)`."""

    def __init__(self, servers: Servers, identity: Lending, shares: Shares) -> None:
        self.servers = servers
        self.identity = identity
        self._shares = shares

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: DatabaseSettings, hot: HotStatements = _NOTHING_HOT) -> AsyncIterator["Database"]:
        """Connect, refuse a stale schema, and watch every server's position.

        Raises:
            SchemaError: when migrations are missing.
        """
        fence = Fence()
        async with contextlib.AsyncExitStack() as stack:

            async def connections(url: str, role: str, minimum: int, maximum: int, **more: Any) -> Lending:
                pool = await create_pool(url, role=role, service="tickets", minimum=minimum, maximum=maximum, **more)
                lending = Lending(pool)
                stack.push_async_callback(lending.close)
                return lending

            async def connect_primary() -> tuple[Lending, Lending]:
                url = settings.database_url
                await _require_current(url)
                statements = (*hot.writes, *hot.reads, SERVER_POSITION, READ_POSITION)
                sizes = (settings.pool_minimum, settings.pool_maximum)
                return (
                    await connections(url, APP_ROLE, *sizes, prepare=statements, check=fence.check),
                    await connections(url, IDENTITY_ROLE, 1, 10, prepare=hot.identity, check=fence.check),
                )

            own, identity = await background.patiently("tickets database", connect_primary)
            primary = Primary(settings.database_url, own, identity, APP_ROLE, fence)
            # A replica may be away at start: its pool connects when it has been found.
            replicas = []
            for number, url in enumerate(settings.replica_urls, start=1):
                statements = (*hot.reads, READ_POSITION)
                read = await connections(url, APP_ROLE, 0, settings.pool_maximum, writes=False, prepare=statements)
                replicas.append(
                    Replica(f"replica-{number}", url, read, APP_ROLE, primary, minimum=settings.pool_minimum)
                )
            analytics = None
            if reports := settings.analytics_url:
                limits: dict[str, Any] = {"writes": False, "statement_seconds": REPORT_SECONDS}
                read = await connections(reports, APP_ROLE, 0, REPORT_CONNECTIONS, **limits)
                analytics = Replica("analytics", reports, read, APP_ROLE, primary, lag_seconds=REPORT_LAG_SECONDS)
            servers = Servers(primary, replicas, analytics)
            await stack.enter_async_context(servers.watched())
            yield cls(servers, identity, Shares(max(1, settings.pool_maximum // 2)))

    @contextlib.asynccontextmanager
    async def write(self, organization_id: uuid.UUID) -> AsyncIterator[Write]:
        """A transaction on the primary; `position` of what it yields is set when the block has ended."""
        primary = self.servers.primary
        share = self._shares.one_of(organization_id, seconds=ACQUIRE_SECONDS)
        async with share, primary.connections.lend() as connection:
            try:
                async with transaction_on(connection, organization_id=organization_id):
                    write = Write(connection)
                    yield write
            except asyncpg.ReadOnlySQLTransactionError:
                await primary.look_again()
                raise
            write.position = (await primary.position_on(connection)).position

    async def read(
        self,
        organization_id: uuid.UUID,
        requirement: Requirement,
        work: Work[T],
    ) -> Found[T]:
        """Do `work` in a read-only transaction of one snapshot, on a server that includes what is required.

        `work` may be done again on another server when a replica fails or takes longer than 2 s.

        Raises:
            Problem: `invalid_parameter` for a position that the primary has not reached.
        """
        need = requirement.position
        failed: set[Replica] = set()
        while not requirement.primary and (replica := await self.servers.reader(need, failed)):
            try:
                return await _read_on(replica, organization_id, work, need, seconds=REPLICA_SECONDS)
            except _ELSEWHERE as error:
                log.info("read_elsewhere", server=replica.name, error=repr(error))
                failed.add(replica)
                replica.ask_soon()
        primary = self.servers.primary
        if primary.standing is None or (need is not None and need > primary.standing.position):
            _require_reached(need, (await primary.ask()).position)
        return await _read_on(primary, organization_id, work, need)

    async def report(self, organization_id: uuid.UUID, work: Work[T], need: Position | None = None) -> Found[T]:
        """Do `work`, which reads much, in a read-only transaction of one snapshot on the analytics replica only.

        The replica is waited for, 2 s, until it has everything up to `need`. Each statement may take 30 s.

        Raises:
            Problem: `service_unavailable` when there is no such replica, it does not answer, does not get to `need`, or
                is more than five minutes behind; `deadline_exceeded` when a statement took too long;
                `invalid_parameter` for a position that the primary has not reached.
        """
        server = self.servers.analytics
        if server is None:
            raise Problem("service_unavailable", "Reports need an analytics replica: TICKETS_ANALYTICS_URL is not set.")
        _require_reports(server)
        if need and not (server.has(need) or await self.servers.first_with(need, [server], REPORT_WAIT_SECONDS)):
            _require_reports(server)
            _require_reached(need, (await self.servers.primary.ask()).position)
            raise Problem("service_unavailable", "The analytics replica has not yet replayed what the token asks for.")
        try:
            return await _read_on(server, organization_id, work, need)
        except asyncpg.QueryCanceledError as error:
            raise Problem("deadline_exceeded", f"The report took longer than {REPORT_SECONDS:.0f} s.") from error
        except _ELSEWHERE as error:
            server.ask_soon()
            raise _no_reports("does not answer") from error

    async def check(self) -> None:
        """Raise what the driver raises when the primary does not answer within a second."""
        await self.servers.primary.ask()


async def _read_on(
    server: Server, organization_id: uuid.UUID, work: Work[T], need: Position | None, *, seconds: float | None = None
) -> Found[T]:
    """Read on a server that has `need`; after `seconds` it is given up, whether it answers or not."""
    seen = server.standing
    if seen is None or (need is not None and seen.position < need):
        raise ConnectionError(f"{server.name} does not answer")
    async with server.connections.lend(seconds or ACQUIRE_SECONDS) as connection:
        with given_up_after(connection, seconds) if seconds else contextlib.nullcontext():
            async with transaction_on(connection, organization_id=organization_id, read_only=True):
                value = await work(connection)
                newest = await store_servers.read_position(connection, seen.position.timeline)
    as_of = seen.position
    if not seen.standby:
        # A commit record may stand in the log before its transaction is visible; what was *told* before this
        # position, however, is.
        as_of = as_of._replace(lsn=max(0, as_of.lsn - 1))
    return Found(value, max(as_of, need) if need else as_of, newest)


async def _require_current(url: str) -> None:
    """Before there are pools, whose statements an older schema would not know."""
    connection = await connect(url, role=APP_ROLE, service="tickets")
    try:
        await require_current(connection, MIGRATIONS)
    finally:
        connection.terminate()


def _require_reached(need: Position | None, reached: Position) -> None:
    """Nobody was ever given a token beyond where the primary is."""
    if need is not None and need.timeline == reached.timeline + 1:
        log.warning("token_of_later_timeline", timeline=need.timeline, reached=reached.timeline)
        # A promotion that this instance has not noticed yet, but another one has.
        raise Problem(
            "service_unavailable",
            "The consistency token is of a later timeline of the database than any server here has. Try again soon; "
            "if it stays, leave the token out.",
        )
    if need is not None and need > reached:
        raise Problem("invalid_parameter", "The consistency token is from the future.")


def _require_reports(server: Replica) -> None:
    if not server.usable or server.standing is None or not server.standing.standby:
        raise _no_reports(_why_not(server))


def _no_reports(why: str) -> Problem:
    return Problem("service_unavailable", f"The analytics replica, from which reports are read, {why}.")


def _why_not(server: Replica) -> str:
    if server.standing is None:
        return "does not answer"
    return "is too far behind" if server.standing.standby else "has become a primary"
