"""The cache alone as a state machine on a real Redis: every order of events that hypothesis thinks of.

Loads stand still before and after they have looked at their source, for as long as the machine likes; meanwhile
documents are written, events and invalidations come late or never, tags, entries and leases vanish, time passes. Each
read must show whatever its process had been told before it began, its process's own writes, and all that its token
includes.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import random
import uuid
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from infra.local.stack import Stack
from libs.common import background
from libs.common.cache import local, store
from libs.common.cache.loads import Lives, Load, Loaded
from libs.common.cache.readthrough import ReadThroughCache
from libs.common.cache.tags import CHANNEL, Tags, tag_key
from libs.common.consistency import Position, Requirement
from tests.support.caching import Process, Source
from tests.support.realtime import until

PROCESSES = st.integers(0, 1)
DOCUMENTS = st.sampled_from(["a", "a", "a", "b"])
READINGS = 4
SOON_SECONDS = 0.01
PATIENCE_SECONDS = 30.0
LONG = 10_000.0  # longer than any entry lives


class Clock:
    """Stands in for the module `time` of libs.common.cache.local."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Link:
    """What comes to one process from Redis: it can be held up, and tells how far it has been taken in.

    `fence` is the number of the last fence, a message that follows all others; `lives` counts connections.
    """

    def __init__(self, organization: str) -> None:
        self._fence = f"{organization} fence ".encode()
        self.free = asyncio.Event()
        self.free.set()
        self.fence = 0
        self.lives = 0

    def pubsub(self, real: PubSub) -> PubSub:
        self.lives += 1
        get_message = real.get_message
        handed = 0

        async def get_message_when_free(*, timeout: float) -> Any:
            nonlocal handed
            self.fence = max(self.fence, handed)  # whoever comes for the next one has dealt with the last
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self.free.wait()
                message = await get_message(timeout=timeout)
                if message is not None and message["type"] == "message" and message["data"].startswith(self._fence):
                    handed = int(message["data"].removeprefix(self._fence))
                return message
            return None

        real.get_message = get_message_when_free  # type: ignore[method-assign,assignment]
        return real


class GatedLoad:
    """A load that stands still before it looks at its source and before it answers."""

    def __init__(self) -> None:
        self._step = asyncio.Event()
        self.waiting = False

    async def stand(self) -> None:
        self.waiting = True
        await self._step.wait()

    def go_on(self) -> None:
        if self.waiting:
            self.waiting = False
            self._step.set()
            self._step = asyncio.Event()


@dataclasses.dataclass
class Reading:
    """A read under way, the least it may show, and the position since which it must have been loaded."""

    process: int
    name: str
    need: Position | None
    least: int
    since: int
    gate: GatedLoad
    task: "asyncio.Task[tuple[int, Position | None, str]]"


class CacheMachine(RuleBasedStateMachine):
    """`told[process][document]` is the newest version of which a process has heard, or could have.

    `cleared[process]` is the position since which it may give only what was loaded since.

    There are no preconditions: how far a read has come depends on the moment, and what is drawn must not.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(store, "LEASE_SECONDS", 0.1)
        self.clock = Clock()
        self.patch.setattr(local, "time", self.clock)
        self.organization = uuid.uuid4().hex
        self.source = Source(random.Random(1))
        self.source.delay = 0.0
        self.events: list[tuple[str, int, Position]] = []
        self.bumped: dict[str, int] = {}
        self.told: list[dict[str, int]] = [{}, {}]
        self.cleared = [0, 0]
        self.last_cleared = 0
        self.readings: list[Reading] = []
        self.token: Position | None = None
        self.fences = 0
        self.do(self.open(url))

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    async def open(self, url: str) -> None:
        self.redis = Redis.from_url(url)
        self.tags = Tags(self.redis)
        self.ends = contextlib.AsyncExitStack()
        self.processes = [Process(url, self.source, l1_items=3) for _ in range(2)]
        self.links = [Link(self.organization) for _ in range(2)]
        for process, link in zip(self.processes, self.links, strict=True):
            real = process.redis.pubsub
            self.patch.setattr(process.redis, "pubsub", lambda real=real, link=link: link.pubsub(real()))
            self.ends.push_async_callback(process.redis.aclose)
            listening = lambda cache=process.cache: _listen(cache)  # noqa: E731
            await self.ends.enter_async_context(background.running("cache_invalidations", listening))
        await until(lambda: all(process.listening for process in self.processes))

    def teardown(self) -> None:
        try:
            self.do(self.come_to_rest())
        finally:
            self.do(self.close())
            self.loop.close()
            self.patch.undo()

    async def close(self) -> None:
        for reading in self.readings:
            reading.task.cancel()
        await asyncio.wait_for(self.ends.aclose(), PATIENCE_SECONDS)
        await self.redis.aclose()

    # --- what happens --------------------------------------------------------------------------------------

    @rule(document=DOCUMENTS, process=st.none() | PROCESSES)
    def write(self, document: str, process: int | None) -> None:
        """A version is committed; the process that took it bumps, or it goes down before: then only the event tells."""
        self.do(self._write(f"{self.organization}:{document}", process))

    @rule(turn=st.integers(0, 10))
    def event_arrives(self, turn: int) -> None:
        """In any order: the tickets of an organization are in several partitions."""
        if self.events:
            name, version, position = self.events.pop(turn % len(self.events))
            self.do(self._bump(name, version, position))

    @rule(process=PROCESSES, document=DOCUMENTS, with_token=st.booleans(), listed=st.booleans())
    def read(self, process: int, document: str, *, with_token: bool, listed: bool) -> None:
        if len(self.readings) < READINGS:
            need = self.token if with_token else None
            self.do(self._begin(process, f"{self.organization}:{document}", need, listed=listed))

    @rule(process=PROCESSES, document=DOCUMENTS, listed=st.booleans())
    def read_at_once(self, process: int, document: str, *, listed: bool) -> None:
        """Begin and end, but for what waits for a load that stands still."""
        self.do(self._begin(process, f"{self.organization}:{document}", None, listed=listed))
        reading = self.readings[-1] if self.readings else None
        for _ in range(2):
            if reading in self.readings and reading is not None:
                reading.gate.go_on()
                self.do(self._settle())

    @rule(process=PROCESSES, document=DOCUMENTS, before=st.booleans(), listed=st.booleans())
    def write_during_a_load(self, process: int, document: str, *, before: bool, listed: bool) -> None:
        """The load has looked at its source already, or not yet; then somebody comes who must not get its answer."""
        self.read(process=process, document=document, with_token=False, listed=listed)
        if not before:
            self.load_goes_on(turn=len(self.readings) - 1)
        self.write(document=document, process=process)
        self.read(process=process, document=document, with_token=False, listed=listed)

    @rule(process=PROCESSES, document=DOCUMENTS, listed=st.booleans())
    def token_of_what_was_not_heard(self, process: int, document: str, *, listed: bool) -> None:
        """Written elsewhere, while nothing gets through to whoever is asked."""
        self.read_at_once(process=process, document=document, listed=listed)
        self.invalidations(process=process, deed="hold")
        self.write(document=document, process=1 - process)
        self.read(process=process, document=document, with_token=True, listed=listed)

    @rule(turn=st.integers(0, 10))
    def load_goes_on(self, turn: int) -> None:
        waiting = [reading for reading in self.readings if reading.gate.waiting]
        if waiting:
            waiting[turn % len(waiting)].gate.go_on()
        self.do(self._settle())

    @rule(share=st.floats(0, 1))
    def replica_replays(self, share: float) -> None:
        self.source.replayed += round((self.source.lsn - self.source.replayed) * share)

    @rule(deed=st.sampled_from(["flush", "tag", "tags", "born", "entry", "lease", "time"]), document=DOCUMENTS)
    def something_is_lost(self, deed: str, document: str) -> None:
        name = f"{self.organization}:{document}"
        match deed:
            case "flush":
                self.do(_all(self.redis.flushall()))
            case "tag":
                self.do(_all(self.redis.delete(tag_key(name))))
            case "tags":
                self.do(_all(self.redis.delete(tag_key(self.organization))))
            case "born":
                self.do(_all(self.redis.delete(tag_key(_born(name)))))
            case "time":
                self.clock.now += LONG
            case _:
                self.do(_all(self.redis.delete(f"{deed}:document:{name}", f"{deed}:list:{name}")))

    @rule(process=PROCESSES, document=DOCUMENTS, listed=st.booleans(), by_prefix=st.booleans(), loading=st.booleans())
    def cleared_by_hand(self, process: int, document: str, *, listed: bool, by_prefix: bool, loading: bool) -> None:
        """While there is an answer, or while it is being loaded; then everybody asks for it again."""
        self.read_at_once(process=process, document=document, listed=listed)
        if loading:
            self.something_is_lost(deed="entry", document=document)
            self.clock.now += LONG
            self.read(process=process, document=document, with_token=False, listed=listed)
            self.load_goes_on(turn=len(self.readings) - 1)
        self.do(self._clear(process, by_prefix=by_prefix))
        for one in (process, 1 - process):
            self.read_at_once(process=one, document=document, listed=listed)

    @rule(process=PROCESSES, deed=st.sampled_from(["hold", "arrive", "arrive", "cut"]))
    def invalidations(self, process: int, deed: str) -> None:
        """They are held up, arrive, or are lost with their connections."""
        if deed == "hold":
            self.links[process].free.clear()
        else:
            self.do(self._arrive(process) if deed == "arrive" else self._cut())

    # --- how -----------------------------------------------------------------------------------------------

    async def _write(self, name: str, number: int | None) -> None:
        version, position = await self.source.write(name)
        self.events.append((name, version, position))
        if number is not None:
            await self._bump(name, version, position, by=number)
            self.token = max(position, self.token or position)

    async def _bump(self, name: str, version: int, position: Position, by: int | None = None) -> None:
        tags = [name, name.partition(":")[0], *([_born(name)] if version == 1 else [])]
        if by is None:
            await self.tags.bump(tags, position)
        else:
            await self.processes[by].cache.bump(tags, position)
            self.told[by] |= {tag: max(version, self.told[by].get(tag, 0)) for tag in tags}
        self.bumped |= {tag: max(version, self.bumped.get(tag, 0)) for tag in tags}
        await self._heard()

    async def _clear(self, number: int, *, by_prefix: bool) -> None:
        self.source.lsn += 1  # what is loaded from now on can be told from what was loaded before
        cache = self.processes[number].cache
        if by_prefix:
            for kind in ("document", "list"):
                await cache.clear_keys(kind, [f"{kind}:{self.organization}:"])
        else:
            await cache.clear_tags([self.organization, *(_born(f"{self.organization}:{name}") for name in "ab")])
        self.last_cleared = self.cleared[number] = self.source.lsn
        await self._heard()

    async def _heard(self) -> None:
        """Whoever is not held up takes in what was sent, or knows that it has missed it."""
        self.fences += 1
        lives = [link.lives for link in self.links]
        await self.redis.publish(CHANNEL, f"{self.organization} fence {self.fences}")
        for link, process, told, life in zip(self.links, self.processes, self.told, lives, strict=True):
            if link.free.is_set():
                await until(lambda: self._passed(link, process, life))  # noqa: B023 (it is awaited here)
                for name, version in self.bumped.items():
                    told[name] = max(version, told.get(name, 0))
                self.cleared[self.processes.index(process)] = self.last_cleared

    def _passed(self, link: Link, process: Process, life: int) -> bool:
        return link.fence >= self.fences or link.lives > life or not process.listening

    async def _arrive(self, number: int) -> None:
        self.links[number].free.set()
        await self._heard()
        await self._settle()

    async def _cut(self) -> None:
        lives = [link.lives for link in self.links]
        await self.redis.client_kill_filter(_type="pubsub")
        for link, process, life in zip(self.links, self.processes, lives, strict=True):
            if link.free.is_set():
                await until(lambda: link.lives > life and process.listening)  # noqa: B023 (it is awaited here)
        await self._settle()

    async def _begin(self, number: int, name: str, need: Position | None, *, listed: bool) -> None:
        """Read a document, or a list of it: that depends on which documents there are, and the document is its part."""
        organization = name.partition(":")[0]
        process, gate = self.processes[number], GatedLoad()
        # Whoever wrote the first version and went down leaves it to the event to tell that there is a document.
        told = self.told[number]
        least = told.get(name, 0) if not listed or _born(name) in told else 0
        if need is not None:
            least = max(least, self.source.version(name, need.lsn))

        async def read() -> tuple[int, Position | None, str]:
            entry, outcome = await process.cache.get(
                f"{'list' if listed else 'document'}:{name}",
                key_type="document",
                tags=[_born(name)] if listed else [name, organization],
                watched=[organization] if listed else [],
                need=need,
                lives=Lives(600, missing=600),
                load=_gated(self.source, name, gate, parts=(name,) if listed else ()),
            )
            return int(entry.body), entry.consistency, outcome

        since = self.cleared[number]
        self.readings.append(Reading(number, name, need, least, since, gate, asyncio.create_task(read())))
        await self._settle()

    async def _settle(self) -> None:
        """Let everything get as far as it gets, and judge the reads that have ended."""
        deadline = asyncio.get_running_loop().time() + SOON_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            if all(reading.gate.waiting or reading.task.done() for reading in self.readings):
                break
            await asyncio.sleep(0.001)
        for reading in [reading for reading in self.readings if reading.task.done()]:
            self.readings.remove(reading)
            version, consistency, outcome = reading.task.result()
            assert version >= reading.least, f"{reading.name}: {reading.least} was told, {version} read from {outcome}"
            if consistency is not None:
                assert consistency.lsn >= reading.since, f"{reading.name} was cleared, and read from {outcome}"
                assert self.source.version(reading.name, consistency.lsn) >= version, "newer than its own token"
                self.token = max(consistency, self.token or consistency)

    async def come_to_rest(self) -> None:
        """Everything arrives, every read ends, and then everybody reads the newest."""
        for number in range(len(self.processes)):
            await self._arrive(number)
        for name, version, position in self.events:
            await self._bump(name, version, position)
        self.source.replayed = self.source.lsn
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.readings:
                for reading in self.readings:
                    reading.gate.go_on()
                await self._settle()
            for number in range(len(self.processes)):
                for name, listed in itertools.product(self.source.history, [False, True]):
                    await self._begin(number, name, None, listed=listed)
                    while self.readings:
                        self.readings[0].gate.go_on()
                        await self._settle()


def _born(name: str) -> str:
    """The tag that a document's first version bumps as well."""
    return f"{name} born"


def _gated(source: Source, name: str, gate: GatedLoad, *, parts: tuple[str, ...]) -> Load:
    """The rules of services/tickets/database.py, with stops. Without any version there is nothing: 404."""

    async def load(requirement: Requirement) -> Loaded:
        await gate.stand()
        need = requirement.position
        on_replica = not requirement.primary and (need is None or need.lsn <= source.replayed)
        seen = Position(1, source.replayed if on_replica else source.lsn)
        version = source.version(name, seen.lsn)
        consistency = Position(1, source.lsn)
        await gate.stand()
        as_of = max(seen, need) if need else seen
        if not version:
            return Loaded(b"0", {}, None, None, status=404)
        return Loaded(str(version).encode(), {}, as_of=as_of, consistency=consistency, parts=parts)

    return load


async def _listen(cache: ReadThroughCache) -> None:
    """Again at once when it has ended: the machine cuts connections all the time."""
    while True:
        with contextlib.suppress(RedisError, OSError):
            await cache.listen()


async def _all(work: Any) -> None:
    await work


def test_no_order_of_events_makes_the_cache_answer_with_what_is_known_to_be_old(stack: Stack) -> None:
    run_state_machine_as_test(
        lambda: CacheMachine(stack.cache_redis_url),  # type: ignore[arg-type]  # it is called, whatever it is
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            phases=[Phase.generate],  # what interleaves on real connections does not shrink
            suppress_health_check=list(HealthCheck),
        ),
    )
