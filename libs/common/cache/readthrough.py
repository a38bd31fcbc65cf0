"""Read-through: L1, then L2, then one load a key.

Correctness rests on four rules. The stamps of an entry's tags are read before its load. A load that was under way
when one of its tags was bumped is handed to those who waited for it already, but never kept in L1 and never joined
by anybody who came after the bump. A reader with a consistency token gets nothing whose `as_of` is older. A bump that
Redis did not take is owed: nobody here reads L2 before it has been made up for.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from libs.common.cache.loads import Flight, Lives, Load, Loaded, Question
from libs.common.cache.local import Entry, LocalCache
from libs.common.cache.store import Begun, Shared, Store
from libs.common.cache.tags import CHANNEL, KEYS_BEGIN, PRIMARY, Tags, TagValue
from libs.common.consistency import Position, Requirement
from libs.common.metrics import CACHE_HITS, CACHE_MISSES

_REDIS_SECONDS = 1.0
_RETRY_L2_SECONDS = 1.0
_ASK_SECONDS = 0.5
_SILENCE_SECONDS = 1.0
_TRUSTED_SECONDS = 1.5
_OWED_TAGS = 10_000
log = structlog.get_logger()


def connect(url: str) -> Redis:
    """A client for the cache's Redis: a second for an answer, and no second try.

    Trying again would hold up reads that their source can answer, and would renew the invalidation connection without
    anybody learning what was missed meanwhile.
    """
    return Redis.from_url(
        url, socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS, retry=Retry(NoBackoff(), 0)
    )


class State(NamedTuple):
    """What the cache holds: entries in L1 of at most `items`, loads under way, and Redis's own figures."""

    entries: int
    items: int
    listening: bool
    flights: int
    shared: Shared | None


class ReadThroughCache:
    """The two levels together. `l2` (see `connect`) may go away at any time: reads then go to their source."""

    def __init__(self, l2: Redis, *, l1_items: int, l1_seconds: float) -> None:
        self._l2 = l2
        self._tags = Tags(l2)
        self._store = Store(l2)
        self._l1 = LocalCache(items=l1_items, seconds=l1_seconds)
        self._flights: dict[str, Flight] = {}
        self._l2_retry_at = 0.0
        self._owed: dict[str, Position] = {}
        self._current_at = -math.inf  # L1 knows of every bump before this moment of the monotonic clock
        self._counters: dict[tuple[str, ...], Counter] = {}

    async def get(
        self,
        key: str,
        *,
        key_type: str,
        tags: Sequence[str],
        watched: Sequence[str] = (),
        need: Position | None,
        lives: Lives,
        load: Load,
        is_away: Callable[[Exception], bool] = lambda _error: False,
    ) -> tuple[Entry, str]:
        """The answer for `key` and where it came from: `l1`, `l2`, `miss` or `stale`.

        `key` must name everything the answer depends on; `tags` and `watched` as in `Question`. When `load` fails with
        an error of which `is_away` says that it tells nothing of the answer, the last one known is given as `stale`,
        if it may still be.

        Raises:
            Exception: whatever `load` raises; nothing is cached then.
        """
        local = self.at_hand(key, key_type, need)
        if local is not None:
            return local, "l1"
        entry, outcome = await self._fly(key, need, Question(tags, watched, lives, load, is_away))
        if not entry.satisfies(need) and (entry.status == 200 or outcome != "miss"):
            raise RuntimeError(f"the load of {key} ignored what it must include: {need}")
        if outcome == "l2":
            self._counted(CACHE_HITS, "l2", key_type).inc()
        else:
            self._counted(CACHE_MISSES, key_type).inc()
        return entry, outcome

    def at_hand(self, key: str, key_type: str, need: Position | None) -> Entry | None:
        """What L1 has for `key`, if it will do."""
        entry = self._l1.get(key)
        if entry is None or not entry.satisfies(need) or time.monotonic() - self._current_at > _TRUSTED_SECONDS:
            return None
        self._counted(CACHE_HITS, "l1", key_type).inc()
        return entry

    def _counted(self, counter: Counter, *labels: str) -> Counter:
        child = self._counters.get(labels)
        if child is None:
            child = self._counters[labels] = counter.labels(*labels)
        return child

    async def bump(self, tags: Sequence[str], position: Position) -> None:
        """Invalidate here and everywhere. When Redis does not answer the others hear of it by the event."""
        self._invalidate_here(tags)
        try:
            await self._tags.bump(tags, position)
        except (RedisError, OSError, TimeoutError) as error:
            self._l2_failed(error)
            self._owe(tags, position)
        self._invalidate_here(tags)

    async def clear_tags(self, tags: Sequence[str]) -> None:
        """Clear by hand whatever carries one of `tags`: here at once, elsewhere as soon as a bump would be heard.

        Raises:
            RedisError, OSError, TimeoutError: when Redis does not say that it was done.
        """
        await self._tags.clear(tags)
        self._invalidate_here(tags)

    async def clear_keys(self, scope: str, beginnings: Sequence[str]) -> int:
        """Clear by hand the keys of a scope that begin like one of `beginnings`; how many were removed from L2.

        Every beginning begins with the scope and a colon. Redis looks at all of its keys, those of other scopes too.

        Raises:
            RedisError, OSError, TimeoutError: when Redis does not say that it was done; it may be done in part.
        """
        removed = await self._store.remove(scope, beginnings)
        self._remove_here(tuple(beginnings))
        return removed

    async def state(self) -> State:
        """What the cache holds. Without the part of Redis when that does not answer."""
        try:
            shared = await self._store.state()
        except (RedisError, OSError, TimeoutError) as error:
            self._l2_failed(error)
            shared = None
        return State(len(self._l1), self._l1.items, self._l1.listening, len(self._flights), shared)

    def hottest(self, beginning: str, count: int) -> list[tuple[str, int]]:
        """As `LocalCache.hottest`."""
        return self._l1.hottest(beginning, count)

    async def listen(self) -> None:
        """Keep L1 true to the bumps of other processes, until the connection fails.

        Whatever comes, the connection is asked for a sign of life twice a second: its answer says that every bump from
        before the question has come. L1 gives nothing while the last question that was answered is older than 1.5 s,
        be it that the connection lags or that this process stood still, nor while nobody is listening.
        """
        pubsub = self._l2.pubsub()
        try:
            asked_at, answered = time.monotonic(), False
            await pubsub.subscribe(CHANNEL)
            while True:
                message = await pubsub.get_message(timeout=_ASK_SECONDS / 2)
                _stop_if_cancelled()
                if message is not None and message["type"] in {"subscribe", "pong"}:
                    if message["type"] == "subscribe":
                        self._start_listening()
                    self._current_at, answered = asked_at, True
                elif message is not None and message["type"] == "message":
                    self._told(message["data"].decode().split("\n"))
                now = time.monotonic()
                if not answered and now - asked_at > _SILENCE_SECONDS:
                    raise TimeoutError("the invalidation connection does not answer")
                if answered and now - asked_at >= _ASK_SECONDS:
                    asked_at, answered = now, False
                    await pubsub.ping()
        finally:
            self._stop_listening()
            await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _start_listening(self) -> None:
        self._overtake(lambda _flight: True)
        self._l1.listening = True

    def _stop_listening(self) -> None:
        self._l1.listening = False
        self._overtake(lambda _flight: True)

    def _overtake(self, which: Callable[[Flight], bool]) -> None:
        for flight in self._flights.values():
            if which(flight):
                flight.overtaken = True

    def _invalidate_here(self, tags: Sequence[str]) -> None:
        self._l1.invalidate(tags)
        self._overtake(lambda flight: not flight.tags.isdisjoint(tags))

    def _told(self, lines: Sequence[str]) -> None:
        """Heed a message of `CHANNEL`."""
        self._invalidate_here([line for line in lines if not line.startswith(KEYS_BEGIN)])
        if beginnings := tuple(line.removeprefix(KEYS_BEGIN) for line in lines if line.startswith(KEYS_BEGIN)):
            self._remove_here(beginnings)

    def _remove_here(self, beginnings: tuple[str, ...]) -> None:
        self._l1.remove(beginnings)
        self._overtake(lambda flight: flight.key.startswith(beginnings))

    async def _fly(self, key: str, need: Position | None, question: Question) -> tuple[Entry, str]:
        """Join the load under way if it will do, else start one."""
        failed = False
        while True:
            flight = self._flights.get(key)
            if flight is None or not flight.will_do(need) or (failed and flight.need != need):
                flight = self._start(key, need, question)
            try:
                # The load is everybody's: one waiter that goes away must not take it from the others.
                return await asyncio.shield(flight.task)
            except Exception:
                if flight.need == need:
                    raise
                # Perhaps it failed only because somebody else asked too much of it, such as a token from the future.
                failed = True

    def _start(self, key: str, need: Position | None, question: Question) -> Flight:
        flight = Flight(key, question.heeded, need)

        async def fly() -> tuple[Entry, str]:
            try:
                entry, outcome = await self._read(key, need, question)
                if not flight.overtaken and outcome != "stale":
                    self._l1.put(key, entry, [*question.tags, *entry.parts], seconds=question.seconds(entry))
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

    async def _read(self, key: str, need: Position | None, question: Question) -> tuple[Entry, str]:
        begun: Begun | None = None
        if time.monotonic() >= self._l2_retry_at:
            try:
                await self._pay()
                found = await self._store.look_up(key, question.tags)
                if not found.is_valid(need):
                    answer = await self._store.begin(key, question.tags, need, watched=question.watched)
                    if isinstance(answer, Begun):
                        begun = answer
                    else:
                        found = answer
                if begun is None and found.entry is not None:
                    return found.entry, "l2"
            except (RedisError, OSError, TimeoutError) as error:
                self._l2_failed(error)
        try:
            return await self._load(key, need, question, begun), "miss"
        except Exception as error:
            old = await self._last_known(key, need, question) if question.is_away(error) else None
            if old is None:
                raise
            return old, "stale"

    async def _last_known(self, key: str, need: Position | None, question: Question) -> Entry | None:
        """What may be given while its source is away; looked up only now, as it may just have been cleared."""
        if time.monotonic() < self._l2_retry_at:
            return None
        try:
            found = await self._store.look_up(key, question.tags)
        except (RedisError, OSError, TimeoutError) as error:
            self._l2_failed(error)
            return None
        if found.entry is None or found.is_cleared() or not question.may_be_stale(found.entry, need):
            return None
        return found.entry

    async def _load(self, key: str, need: Position | None, question: Question, begun: Begun | None) -> Entry:
        stored = False
        try:
            loaded = await question.load(_requirement(need, begun.values if begun is not None else None))
            entry = _entry(loaded, ())
            if begun is not None:
                try:
                    stamps = await self._stamps(loaded, question, begun)
                    if stamps is not None:
                        entry = _entry(loaded, stamps)
                        await self._store.finish(key, question.heeded, begun, entry, seconds=question.seconds(entry))
                        stored = True
                except (RedisError, OSError, TimeoutError) as error:
                    self._l2_failed(error)
            return entry
        finally:
            if begun is not None and begun.lease is not None and not stored:
                with contextlib.suppress(RedisError, OSError, TimeoutError):  # it ends by itself
                    await self._store.give_back(key, begun.lease)

    async def _stamps(self, loaded: Loaded, question: Question, begun: Begun) -> tuple[str, ...] | None:
        """Those of the tags and the parts, as they were before the load; None if that cannot be told."""
        count = len(question.tags)
        stamps = [value.stamp for value in begun.values[:count]]
        if loaded.parts:
            watched = dict(zip(question.watched, begun.values[count:], strict=True))
            of_parts = await self._store.open_parts(loaded.parts, watched, loaded.as_of)
            if of_parts is None:
                return None
            stamps += of_parts
        return tuple(stamps)

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


def _entry(loaded: Loaded, stamps: tuple[str, ...]) -> Entry:
    return Entry(
        loaded.body,
        loaded.headers,
        loaded.as_of,
        loaded.consistency,
        stamps,
        loaded.status,
        time.time(),
        loaded.parts,
    )


def _requirement(need: Position | None, values: Sequence[TagValue] | None) -> Requirement:
    if values is None or any(value.floor == PRIMARY for value in values):
        return Requirement(need, primary=True)
    known = [Position.from_token(value.floor) for value in values]
    return Requirement(max([*known, need] if need else known), primary=False)
