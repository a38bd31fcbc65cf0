"""A source of versions with a replica that lags, and caches in front of it, for tests of libs/common/cache."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Iterable

from redis.asyncio import Redis

from libs.common import background
from libs.common.cache.loads import Lives, Load, Loaded
from libs.common.cache.local import Entry
from libs.common.cache.readthrough import ReadThroughCache, connect
from libs.common.cache.search_tags import of_search
from libs.common.cache.store import Begun, Store
from libs.common.consistency import Position, Requirement
from tests.support.realtime import until


class Source:
    """Documents with versions: every write is a commit at the next position, replayed by the replica when told."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.lsn = 100
        self.replayed = 100
        self.history: dict[str, list[tuple[int, int]]] = {}
        self.loads: dict[str, int] = {}
        self.most_at_once: dict[str, int] = {}
        self.delay = 0.002

    async def write(self, name: str) -> tuple[int, Position]:
        """Commit the next version of a document; its number and the position that includes it."""
        await self.pause()
        self.lsn += 1
        versions = self.history.setdefault(name, [])
        versions.append((self.lsn, len(versions) + 1))
        return len(versions), Position(1, self.lsn)

    def version(self, name: str, lsn: int) -> int:
        return max((version for at, version in self.history.get(name, []) if at <= lsn), default=0)

    def newest(self, name: str) -> int:
        return self.version(name, self.lsn)

    def position_of(self, name: str, version: int) -> Position:
        return next(Position(1, at) for at, number in self.history[name] if number == version)

    async def replay(self) -> None:
        """The replica's life: it stands still and catches up in jumps."""
        while True:
            await asyncio.sleep(self.rng.random() * self.delay * 3)
            self.replayed = self.rng.randint(self.replayed, self.lsn)

    async def pause(self) -> None:
        if self.rng.random() < 0.8:
            await asyncio.sleep(self.rng.random() * self.delay)

    def load(self, process: str, name: str) -> Load:
        """How `process` loads a document, by the rules of services/tickets/database.py."""

        async def load(requirement: Requirement) -> Loaded:
            flight = f"{process}:{name}"
            self.loads[flight] = self.loads.get(flight, 0) + 1
            self.most_at_once[flight] = max(self.loads[flight], self.most_at_once.get(flight, 0))
            try:
                need = requirement.position
                on_replica = not requirement.primary and (need is None or need.lsn <= self.replayed)
                if not on_replica and need is not None and need.lsn > self.lsn:
                    raise FutureTokenError
                seen = Position(1, self.replayed if on_replica else self.lsn)
                as_of = max(seen, need) if need else seen
                await self.pause()
                snapshot = self.replayed if on_replica else self.lsn
                await self.pause()
                body = str(self.version(name, snapshot)).encode()
                return Loaded(body, {}, as_of=as_of, consistency=Position(1, self.lsn))
            finally:
                self.loads[flight] -= 1

        return load


class FutureTokenError(Exception):
    """What the source answers to a position it has not reached."""


class Process:
    """One gateway as far as the cache goes: own connections, own L1."""

    def __init__(self, url: str, source: Source, *, l1_items: int = 100) -> None:
        self.name = uuid.uuid4().hex[:8]
        self.redis: Redis = connect(url)
        self.cache = ReadThroughCache(self.redis, l1_items=l1_items, l1_seconds=60)
        self.source = source

    @property
    def listening(self) -> bool:
        return self.cache._l1.listening

    async def read(self, name: str, need: Position | None = None) -> tuple[int, Position, str]:
        """The version read, the token told with it and where it came from."""
        entry, outcome = await self.cache.get(
            f"document:{name}",
            key_type="document",
            tags=[name, name.partition(":")[0]],
            need=need,
            lives=Lives(600),
            load=self.source.load(self.name, name),
        )
        assert entry.consistency is not None
        return int(entry.body), entry.consistency, outcome

    async def write(self, name: str) -> tuple[int, Position]:
        """Write and invalidate, as a gateway does before it answers."""
        version, position = await self.source.write(name)
        await self.cache.bump([name, name.partition(":")[0]], position)
        return version, position


class CachedSearch:
    """An answer of a search in L2, which depends on `parts` besides what every search of the organization does."""

    def __init__(self, redis: Redis, organization_id: uuid.UUID, parts: Iterable[str]) -> None:
        self._store = Store(redis)
        self._key = f"{organization_id}:search"
        self._tags, self._watched = of_search(organization_id)
        self._parts = tuple(parts)

    async def keep(self) -> None:
        begun = await self._store.begin(self._key, self._tags, None, watched=self._watched)
        assert isinstance(begun, Begun)
        own, watched = begun.values[: len(self._tags)], begun.values[len(self._tags) :]
        stamps = await self._store.open_parts(self._parts, dict(zip(self._watched, watched, strict=True)), None)
        assert stamps is not None
        entry = Entry(b"", {}, None, None, (*(value.stamp for value in own), *stamps), parts=self._parts)
        await self._store.finish(self._key, [*self._tags, *self._watched], begun, entry, seconds=60)
        assert await self.is_valid()

    async def is_valid(self) -> bool:
        return (await self._store.look_up(self._key, self._tags)).is_valid(None)


@contextlib.asynccontextmanager
async def processes(url: str, source: Source, count: int, *, l1_items: int = 100) -> AsyncIterator[list[Process]]:
    """Processes that listen to one another."""
    async with contextlib.AsyncExitStack() as stack:
        started = [Process(url, source, l1_items=l1_items) for _ in range(count)]
        for process in started:
            stack.push_async_callback(process.redis.aclose)
            await stack.enter_async_context(background.running("cache_invalidations", process.cache.listen))
        await until(lambda: all(process.listening for process in started))
        yield started
