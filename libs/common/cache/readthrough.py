"""Read-through: L1, then L2, then one load a key.

Correctness rests on four rules. The stamps of an entry's tags are read before its load. A load that was under way
when one of its tags was bumped is handed to those who waited for it already, but never kept in L1 and never joined
by anybody who came after the bump. A reader with a consistency token gets nothing whose `as_of` is older. A bump that
Redis did not take is owed: nobody here reads L2 before it has been made up for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from libs.common.cache.local import Entry, LocalCache
from libs.common.cache.tags import CHANNEL, PRIMARY, Tags, TagValue, key_of, parse
from libs.common.consistency import Position, Requirement
from libs.common.metrics import CACHE_HITS, CACHE_MISSES

_PREFIX = "entry:"
_REDIS_SECONDS = 1.0
_RETRY_L2_SECONDS = 1.0
_SILENCE_SECONDS = 1.0
_OWED_TAGS = 10_000
log = structlog.get_logger()


class Loaded(msgspec.Struct, frozen=True):
    """A load's answer; see `Entry` for the two positions."""

    body: bytes
    headers: dict[str, str]
    as_of: Position | None
    consistency: Position | None


Load = Callable[[Requirement], Awaitable[Loaded]]


def connect(url: str) -> Redis:
    """A client for the cache's Redis: a second for an answer, and no second try.

    Trying again would hold up reads that their source can answer, and would renew the invalidation connection without
    anybody learning what was missed meanwhile.
    """
    return Redis.from_url(
        url, socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS, retry=Retry(NoBackoff(), 0)
    )


class _Flight:
    """A load under way. Once `overtaken`, its answer may be old: nobody joins it and L1 does not keep it."""

    def __init__(self, tags: Sequence[str], need: Position | None) -> None:
        self.tags = frozenset(tags)
        self.need = need
        self.overtaken = False
        self.task: asyncio.Task[tuple[Entry, str]]


class ReadThroughCache:
    """The two levels together. `l2` (see `connect`) may go away at any time: reads then go to their source."""

    def __init__(self, l2: Redis, *, l1_items: int, l1_seconds: float) -> None:
        self._l2 = l2
        self._tags = Tags(l2)
        self._l1 = LocalCache(items=l1_items, seconds=l1_seconds)
        self._flights: dict[str, _Flight] = {}
        self._l2_retry_at = 0.0
        self._owed: dict[str, Position] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Entry)

    async def get(
        self,
        key: str,
        *,
        key_type: str,
        tags: Sequence[str],
        need: Position | None,
        seconds: int,
        load: Load,
    ) -> tuple[Entry, str]:
        """The answer for `key` and where it came from: `l1`, `l2` or `miss`.

        `key` must name everything the answer depends on. `seconds` is its time to live in L2.

        Raises:
            Exception: whatever `load` raises; nothing is cached then.
        """
        local = self._l1.get(key)
        if local is not None and local.satisfies(need):
            CACHE_HITS.labels("l1", key_type).inc()
            return local, "l1"
        entry, outcome = await self._fly(key, tags, need, seconds, load)
        if not entry.satisfies(need):
            raise RuntimeError(f"the load of {key} ignored what it must include: {need}")
        if outcome == "miss":
            CACHE_MISSES.labels(key_type).inc()
        else:
            CACHE_HITS.labels(outcome, key_type).inc()
        return entry, outcome

    async def bump(self, tags: Sequence[str], position: Position) -> None:
        """Invalidate here and everywhere. When Redis does not answer the others hear of it by the event."""
        self._invalidate_here(tags)
        try:
            await self._tags.bump(tags, position)
        except (RedisError, OSError, TimeoutError) as error:
            self._l2_failed(error)
            self._owe(tags, position)
        self._invalidate_here(tags)

    async def listen(self) -> None:
        """Keep L1 true to the bumps of other processes, until the connection fails.

        A connection that has been silent for a second is asked for a sign of life, so that a dead one is noticed
        within two. L1 gives nothing while nobody is listening.
        """
        pubsub = self._l2.pubsub()
        try:
            await pubsub.subscribe(CHANNEL)
            asked = False
            while True:
                message = await pubsub.get_message(timeout=_SILENCE_SECONDS)
                _stop_if_cancelled()
                if message is None:
                    if asked:
                        raise TimeoutError("the invalidation connection is silent")
                    await pubsub.ping()
                    asked = True
                    continue
                asked = False
                if message["type"] == "subscribe":
                    self._start_listening()
                elif message["type"] == "message":
                    self._invalidate_here(message["data"].decode().split("\n"))
        finally:
            self._stop_listening()
            await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _start_listening(self) -> None:
        self._overtake_all()
        self._l1.listening = True

    def _stop_listening(self) -> None:
        self._l1.listening = False
        self._overtake_all()

    def _overtake_all(self) -> None:
        for flight in self._flights.values():
            flight.overtaken = True

    def _invalidate_here(self, tags: Sequence[str]) -> None:
        self._l1.invalidate(tags)
        for flight in self._flights.values():
            if not flight.tags.isdisjoint(tags):
                flight.overtaken = True

    async def _fly(
        self, key: str, tags: Sequence[str], need: Position | None, seconds: int, load: Load
    ) -> tuple[Entry, str]:
        """Join the load under way if it will do, else start one."""
        failed = False
        while True:
            flight = self._flights.get(key)
            if flight is None or flight.overtaken or _exceeds(need, flight.need) or (failed and flight.need != need):
                flight = self._start(key, tags, need, seconds, load)
            try:
                # The load is everybody's: one waiter that goes away must not take it from the others.
                return await asyncio.shield(flight.task)
            except Exception:
                if flight.need == need:
                    raise
                # Perhaps it failed only because somebody else asked too much of it, such as a token from the future.
                failed = True

    def _start(self, key: str, tags: Sequence[str], need: Position | None, seconds: int, load: Load) -> _Flight:
        flight = _Flight(tags, need)

        async def fly() -> tuple[Entry, str]:
            try:
                entry, outcome = await self._read(key, tags, need, seconds, load)
                if not flight.overtaken:
                    self._l1.put(key, entry, tags)
                return entry, outcome
            finally:
                if self._flights.get(key) is flight:
                    del self._flights[key]

        replaced = self._flights.get(key)
        if replaced is not None:
            replaced.overtaken = True  # no bump will find it any more
        self._flights[key] = flight
        flight.task = asyncio.create_task(fly())
        # With every waiter gone, nobody would look at a failure.
        flight.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return flight

    async def _read(
        self, key: str, tags: Sequence[str], need: Position | None, seconds: int, load: Load
    ) -> tuple[Entry, str]:
        values: list[TagValue] | None = None
        if time.monotonic() >= self._l2_retry_at:
            try:
                await self._pay()
                stored, values = await self._look_up(key, tags)
                if stored is not None and stored.stamps == tuple(v.stamp for v in values) and stored.satisfies(need):
                    return stored, "l2"
            except (RedisError, OSError, TimeoutError) as error:
                self._l2_failed(error)
        loaded = await load(_requirement(need, values))
        stamps = tuple(v.stamp for v in values) if values is not None else ()
        entry = Entry(loaded.body, loaded.headers, loaded.as_of, loaded.consistency, stamps)
        if values is not None:
            try:
                await self._l2.set(_PREFIX + key, self._encoder.encode(entry), ex=seconds)
                if loaded.consistency is not None:
                    await self._tags.settle(tags, values, loaded.consistency)
            except (RedisError, OSError, TimeoutError) as error:
                self._l2_failed(error)
        return entry, "miss"

    async def _look_up(self, key: str, tags: Sequence[str]) -> tuple[Entry | None, list[TagValue]]:
        """What L2 holds for `key`, valid or not, and the values of its tags now."""
        answer: list[bytes | None] = await self._l2.mget([_PREFIX + key, *map(key_of, tags)])  # type: ignore[assignment]  # decode_responses is off
        found = [parse(value) for value in answer[1:] if value is not None]
        values = found if len(found) == len(tags) else await self._tags.open(tags)
        try:
            return self._decoder.decode(answer[0]) if answer[0] is not None else None, values
        except msgspec.MsgspecError:
            return None, values  # of another version of this code; what is loaded now takes its place

    def _owe(self, tags: Sequence[str], position: Position) -> None:
        """Remember a bump that Redis did not take. Beyond the bound the oldest are left to the events."""
        for tag in tags:
            self._owed[tag] = max(position, self._owed.pop(tag, position))
        while len(self._owed) > _OWED_TAGS:
            del self._owed[next(iter(self._owed))]

    async def _pay(self) -> None:
        """Make up for owed bumps, all at the highest of their positions."""
        if not self._owed:
            return
        paid = dict(self._owed)
        await self._tags.bump(tuple(paid), max(paid.values()))
        for tag, position in paid.items():
            if self._owed.get(tag) == position:
                del self._owed[tag]

    def _l2_failed(self, error: Exception) -> None:
        self._l2_retry_at = time.monotonic() + _RETRY_L2_SECONDS
        log.warning("cache_unavailable", error=repr(error), retry_in_seconds=_RETRY_L2_SECONDS)


def _stop_if_cancelled() -> None:
    """Redis's client uses asyncio.wait_for, which until Python 3.12 swallows a cancellation that comes with its result.

    Whoever listens for ever would then never hear of it.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _exceeds(need: Position | None, offered: Position | None) -> bool:
    return need is not None and (offered is None or need > offered)


def _requirement(need: Position | None, values: Sequence[TagValue] | None) -> Requirement:
    if values is None or any(value.floor == PRIMARY for value in values):
        return Requirement(need, primary=True)
    known = [Position.from_token(value.floor) for value in values]
    return Requirement(max([*known, need] if need else known), primary=False)
