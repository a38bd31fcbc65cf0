"""The primary and its replicas: where a transaction goes, and what its answer is known to include.

Two positions of the write-ahead log go with every read. `as_of` is a lower bound: everything that had been told to
anybody at or before it is included. `consistency` is an upper bound: nothing in the answer is newer. The first lets
a cache decide whether an entry is new enough for a reader, the second is what the reader is told.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

import asyncpg
import structlog

from libs.common import background
from libs.common.consistency import Position, Requirement
from libs.common.migrations import require_current
from libs.common.postgres import (
    ACQUIRE_SECONDS,
    UNAVAILABLE_ERRORS,
    create_pool,
    transaction,
    transaction_on,
)
from libs.common.problems import Problem
from services.tickets.paths import MIGRATIONS
from services.tickets.settings import DatabaseSettings

POLL_SECONDS = 0.05
APP_ROLE = "tickets_app"
IDENTITY_ROLE = "tickets_identity"
RELAY_ROLE = "tickets_relay"

# Where a server stands; on a standby the replayed position and the timeline it follows.
SERVER_POSITION = """
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END AS lsn,
       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END AS timeline"""
# The upper bound of what the transaction's statements so far could see.
READ_POSITION = "SELECT read_position() AS lsn"

T = TypeVar("T")
log = structlog.get_logger()


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


class _Server:
    """One PostgreSQL server and the position it was last seen at (None: it did not answer)."""

    def __init__(self, name: str, pool: asyncpg.Pool) -> None:
        self.name = name
        self.pool = pool
        self.position: Position | None = None

    async def watch(self) -> None:
        while True:
            try:
                await self.refresh()
            except UNAVAILABLE_ERRORS as error:
                self.lost(error)
            await asyncio.sleep(POLL_SECONDS)

    def lost(self, error: BaseException) -> None:
        """Nothing is read from it until it answers again."""
        if self.position is not None:
            log.warning("database_server_lost", server=self.name, error=repr(error))
        self.position = None

    async def refresh(self) -> Position:
        async with asyncio.timeout(1):
            return self.seen(await self.pool.fetchrow(SERVER_POSITION))

    def seen(self, row: asyncpg.Record) -> Position:
        position = Position(row["timeline"], row["lsn"])
        self.position = max(position, self.position or position)
        return position


class Database:
    """The tickets database as the application role sees it. Open with `async with Database.open(settings)`."""

    def __init__(self, primary: _Server, replicas: list[_Server], identity: asyncpg.Pool) -> None:
        self._primary = primary
        self._replicas = replicas
        self._turn = itertools.count()
        self.identity = identity

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: DatabaseSettings) -> AsyncIterator["Database"]:
        """Connect, refuse a stale schema, and watch every server's position.

        Raises:
            SchemaError: when migrations are missing.
        """
        async with contextlib.AsyncExitStack() as stack:

            async def pool(url: str, role: str, minimum: int, maximum: int) -> asyncpg.Pool:
                opened = await create_pool(url, role=role, service="tickets", minimum=minimum, maximum=maximum)
                stack.push_async_callback(_close, opened)
                return opened

            async def connect() -> asyncpg.Pool:
                connected = await pool(settings.database_url, APP_ROLE, settings.pool_minimum, settings.pool_maximum)
                async with connected.acquire() as connection:
                    await require_current(connection, MIGRATIONS)
                return connected

            primary = _Server("primary", await background.patiently("tickets database", connect))
            identity = await pool(settings.database_url, IDENTITY_ROLE, 1, 10)
            replicas = [
                # A replica may be away at start: its pool connects when it is first asked.
                _Server(f"replica-{number}", await pool(url, APP_ROLE, 0, settings.pool_maximum))
                for number, url in enumerate(settings.replica_urls, start=1)
            ]
            for server in (primary, *replicas):
                await stack.enter_async_context(background.running(f"watch_{server.name}", server.watch))
            yield cls(primary, replicas, identity)

    @contextlib.asynccontextmanager
    async def write(self, organization_id: uuid.UUID) -> AsyncIterator[Write]:
        """A transaction on the primary; `position` of what it yields is set when the block has ended."""
        async with self._primary.pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            async with transaction_on(connection, organization_id=organization_id):
                write = Write(connection)
                yield write
            write.position = self._primary.seen(await connection.fetchrow(SERVER_POSITION))

    async def read(
        self,
        organization_id: uuid.UUID,
        requirement: Requirement,
        work: Callable[[asyncpg.Connection], Awaitable[T]],
    ) -> Found[T]:
        """Do `work` in a read-only transaction of one snapshot, on a server that includes what is required.

        `work` may be done again on another server when the first one fails.

        Raises:
            Problem: `invalid_parameter` for a position that the primary has not reached.
        """
        while True:
            server = await self._server_for(requirement)
            seen = server.position or await server.refresh()
            try:
                async with transaction(server.pool, organization_id=organization_id, read_only=True) as connection:
                    value = await work(connection)
                    newest = Position(seen.timeline, await connection.fetchval(READ_POSITION))
            except UNAVAILABLE_ERRORS as error:
                if server is self._primary:
                    raise
                server.lost(error)
                continue
            if server is self._primary:
                # A commit record may stand in the log before its transaction is visible; what was *told* before
                # this position, however, is.
                seen = seen._replace(lsn=max(0, seen.lsn - 1))
            as_of = max(seen, requirement.position) if requirement.position else seen
            return Found(value, as_of, newest)

    async def check(self) -> None:
        """Raise what the driver raises when the primary does not answer within a second."""
        await self._primary.refresh()

    async def _server_for(self, requirement: Requirement) -> _Server:
        need = requirement.position
        if not requirement.primary and self._replicas:
            start = next(self._turn)
            for offset in range(len(self._replicas)):
                replica = self._replicas[(start + offset) % len(self._replicas)]
                if replica.position is not None and (need is None or replica.position >= need):
                    return replica
        if need is not None and (self._primary.position is None or need > self._primary.position):
            reached = await self._primary.refresh()
            if need > reached:
                raise Problem("invalid_parameter", "The consistency token is from the future.")
        return self._primary


async def _close(pool: asyncpg.Pool) -> None:
    try:
        await asyncio.wait_for(pool.close(), 5)
    except TimeoutError:
        pool.terminate()
