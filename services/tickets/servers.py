"""The PostgreSQL servers behind the tickets service: where each stands, and which replica may answer a read.

Every server is asked for its position each 50 ms, on a connection of its own, so that a full pool does not look like
a dead server. A replica may be read from while it answers and has what the primary had a second before the primary's
last answer. So an idle primary makes no replica lag, and one that is down leaves the replicas as they were.
"""

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import AsyncIterator, Collection, Sequence

import asyncpg
import structlog
from prometheus_client import Gauge

from libs.common import background
from libs.common.consistency import Position
from libs.common.lending import Lending
from libs.common.postgres import UNAVAILABLE_ERRORS, connect, end, given_up_after
from services.tickets import store_servers
from services.tickets.store_servers import Standing

POLL_SECONDS = 0.05
FAST_POLL_SECONDS = 0.003  # while a read waits for a replica
ANSWER_SECONDS = 1.0
LAG_SECONDS = 1.0
# How long a read waits for a replica, and how long none waits any more once one has waited in vain.
WAIT_SECONDS = 0.05
NO_WAIT_SECONDS = 1.0

REPLICAS_USABLE = Gauge("database_replicas_usable", "Read replicas that answer and are not more than a second behind.")

log = structlog.get_logger()


class SupersededError(ConnectionError):
    """A server takes writes on a timeline that is over: the primary from before a promotion has come back."""


class Fence:
    """The newest timeline on which a primary was seen; a primary on an older one is refused."""

    def __init__(self) -> None:
        self._timeline = 0

    def accept(self, timeline: int) -> None:
        """Raise SupersededError for a timeline that is over."""
        if timeline < self._timeline:
            raise SupersededError(f"a server takes writes on timeline {timeline}; the primary is on {self._timeline}")
        self._timeline = timeline

    async def check(self, connection: asyncpg.Connection) -> None:
        """Raise SupersededError for a new connection to a primary whose timeline is over."""
        self.accept(await store_servers.primary_timeline(connection))


class Server:
    """One server. `standing` is what it said last; None while it does not answer."""

    def __init__(self, name: str, url: str, connections: Lending, role: str) -> None:
        self.name = name
        self.connections = connections
        self.standing: Standing | None = None
        self.asked = asyncio.Event()  # for the first time, with or without success
        self._url = url
        self._role = role
        self._asked_for = asyncio.Event()

    async def watch(self) -> None:
        """Ask the server where it stands, for ever."""
        while True:
            try:
                connection = await self._connect()
                try:
                    await self._ask_on(connection)
                finally:
                    connection.terminate()
            except (asyncpg.PostgresError, *UNAVAILABLE_ERRORS) as error:
                self._lost(error)
            await self._pause()

    def ask_soon(self) -> None:
        """Somebody waits for the next answer."""
        self._asked_for.set()

    async def _connect(self) -> asyncpg.Connection:
        return await connect(self._url, role=self._role, service="tickets-watch", writes=False)

    async def _ask_on(self, connection: asyncpg.Connection) -> None:
        while True:
            with given_up_after(connection, ANSWER_SECONDS):
                await self._ask(connection)
            self.asked.set()
            await self._pause()

    async def _ask(self, connection: asyncpg.Connection) -> None:
        self._answered(await store_servers.standing(connection))

    def _answered(self, standing: Standing) -> None:
        if self.standing is None:
            log.info("database_server_found", server=self.name, standby=standing.standby)
        self.standing = standing

    def _lost(self, error: Exception) -> None:
        if self.standing is not None or not self.asked.is_set():
            log.warning("database_server_lost", server=self.name, error=repr(error))
        self.standing = None
        self.asked.set()

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._asked_for.wait()
                await asyncio.sleep(FAST_POLL_SECONDS)
        self._asked_for.clear()


class Primary(Server):
    """The server that takes writes, wherever a promotion has put it; `identity` follows it there as well."""

    def __init__(self, url: str, connections: Lending, identity: Lending, role: str, fence: Fence) -> None:
        super().__init__("primary", url, connections, role)
        self.flushed: Position | None = None
        self.answered_at = -math.inf
        self._identity = identity
        self._fence = fence
        self._timeline: int | None = None

    async def ask(self) -> Standing:
        """Where it stands now, asked over the pool.

        Raises:
            OSError, asyncpg.PostgresError: when it does not answer within a second.
        """
        async with self.connections.lend(ANSWER_SECONDS) as connection:
            with given_up_after(connection, ANSWER_SECONDS):
                standing = await self.position_on(connection)
        return standing

    async def position_on(self, connection: asyncpg.Connection) -> Standing:
        """Where it stands, asked on a connection of the pool; after a COMMIT, a position that includes it.

        Raises:
            SupersededError: The server's timeline is over, and what was committed there is lost.
        """
        standing = await store_servers.standing(connection)
        self._fence.accept(standing.position.timeline)
        self._answered(standing)
        return standing

    async def look_again(self) -> None:
        """Let the pools look for the server that takes writes."""
        await self.connections.renew()
        await self._identity.renew()

    async def _connect(self) -> asyncpg.Connection:
        return await connect(self._url, role=self._role, service="tickets-watch", check=self._fence.check)

    async def _ask(self, connection: asyncpg.Connection) -> None:
        asked_at = time.monotonic()
        standing = await store_servers.standing(connection)
        timeline = standing.position.timeline
        self._fence.accept(timeline)
        if timeline != self._timeline:
            await store_servers.record_timeline(connection, timeline)
            if self._timeline is not None:
                await self._promoted(timeline)
            self._timeline = timeline
        self.flushed = standing.flushed
        self.answered_at = asked_at
        self._answered(standing)

    async def _promoted(self, timeline: int) -> None:
        log.warning("database_promoted", timeline=timeline)
        await self.look_again()
        for connection in [*self.connections.lent, *self._identity.lent]:  # whatever they wait for would not count
            end(connection)

    def _answered(self, standing: Standing) -> None:
        # Answers to the watch and to writers overtake one another.
        if self.standing is None or self.standing.position <= standing.position:
            super()._answered(standing)


class Replica(Server):
    """A server that is read from, over at least `minimum` connections. One that was promoted goes on as such."""

    def __init__(
        self,
        name: str,
        url: str,
        connections: Lending,
        role: str,
        primary: Primary,
        *,
        minimum: int = 0,
        lag_seconds: float = LAG_SECONDS,
    ) -> None:
        super().__init__(name, url, connections, role)
        self._minimum = minimum
        self.waiting: set[tuple[Position, asyncio.Future[Replica]]] = set()
        self._primary = primary
        self._lag_seconds = lag_seconds
        self._current_at = -math.inf  # it has what the primary had then
        self._goal: tuple[Position, float] | None = None  # where the primary stood, and when

    @property
    def lag(self) -> float:
        """How many seconds it was behind at the primary's last answer. May say up to twice as many as it is.

        One that was never seen to catch up is infinitely far behind.
        """
        return max(0.0, self._primary.answered_at - self._current_at)

    @property
    def usable(self) -> bool:
        if self.standing is None or self.lag > self._lag_seconds:
            return False
        # A server that was promoted beside a primary that goes on is in a history of its own.
        primary = self._primary.standing
        return primary is None or self.standing.position.timeline <= primary.position.timeline

    def has(self, need: Position | None) -> bool:
        """Whether it may answer a read that needs everything up to `need`."""
        return self.usable and (need is None or (self.standing is not None and self.standing.position >= need))

    def _answered(self, standing: Standing) -> None:
        if self.standing is None:
            self.connections.open(self._minimum)
        super()._answered(standing)
        newest = self._primary.flushed
        if newest is not None:
            goal, at = self._goal or (newest, self._primary.answered_at)
            if standing.position >= goal:
                self._current_at = self._primary.answered_at if standing.position >= newest else at
                goal, at = newest, self._primary.answered_at
            self._goal = goal, at
        for need, reached in self.waiting:
            if not reached.done() and self.has(need):
                reached.set_result(self)
        if self.waiting:
            self.ask_soon()


class Servers:
    """The primary, the replicas for reads, and the one for reports if there is one."""

    def __init__(self, primary: Primary, replicas: Sequence[Replica], analytics: Replica | None) -> None:
        self.primary = primary
        self.replicas = replicas
        self.analytics = analytics
        self._turn = itertools.count()
        self._no_wait_until = -math.inf

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Watch all of them while the block lasts. Begins when each was asked once, after two seconds at most."""
        REPLICAS_USABLE.set_function(lambda: sum(replica.usable for replica in self.replicas))
        read = [*self.replicas, *([self.analytics] if self.analytics else [])]
        async with contextlib.AsyncExitStack() as stack:
            for group in ([self.primary], read):  # a replica is measured by the primary
                for server in group:
                    await stack.enter_async_context(background.running(f"watch_{server.name}", server.watch))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await asyncio.gather(*(server.asked.wait() for server in group))
            yield

    async def reader(self, need: Position | None, without: Collection[Replica]) -> Replica | None:
        """The next replica in turn that has everything up to `need`, if need be after waiting for it a little.

        None when there is none, or none but those of `without`.
        """
        if not self.replicas:
            return None
        start = next(self._turn) % len(self.replicas)
        in_turn = [*self.replicas[start:], *self.replicas[:start]]
        for replica in in_turn:
            if replica not in without and replica.has(need):
                return replica
        inquired = [replica for replica in in_turn if replica not in without and replica.usable]
        if need is None or not inquired or time.monotonic() < self._no_wait_until:
            return None
        reached = await self.first_with(need, inquired, WAIT_SECONDS)
        if reached is None:
            self._no_wait_until = time.monotonic() + NO_WAIT_SECONDS
        return reached

    async def first_with(self, need: Position, replicas: Sequence[Replica], seconds: float) -> Replica | None:
        """The first of `replicas` that gets to `need`; None when none does within so many seconds."""
        reached: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        for replica in replicas:
            replica.waiting.add((need, reached))
            replica.ask_soon()
        try:
            async with asyncio.timeout(seconds):
                return await reached
        except TimeoutError:
            return None
        finally:
            for replica in replicas:
                replica.waiting.discard((need, reached))
