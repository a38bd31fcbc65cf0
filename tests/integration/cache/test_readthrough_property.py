"""Nobody is answered with anything older than was promised, whatever happens to the cache."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator

import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import RedisError

from infra.local.stack import Stack
from libs.common import background
from libs.common.cache.tags import Tags, tag_key
from libs.common.consistency import Position
from tests.support.caching import Process, Source, processes

PROCESSES = 3
QUIET_SECONDS = 2.0


@pytest_asyncio.fixture(loop_scope="session")
async def redis(stack: Stack) -> AsyncIterator[Redis]:
    client = Redis.from_url(stack.cache_redis_url)
    yield client
    await client.aclose()


class Events:
    """The search service's invalidation: every write reaches it, later, and it tries until Redis takes it."""

    def __init__(self, redis: Redis, rng: random.Random) -> None:
        self._tags = Tags(redis)
        self._rng = rng
        self.queue: asyncio.Queue[tuple[str, Position]] = asyncio.Queue()

    async def run(self) -> None:
        while True:
            name, position = await self.queue.get()
            await asyncio.sleep(self._rng.random() * 0.02)
            while True:
                try:
                    await self._tags.bump([name, name.partition(":")[0]], position)
                    break
                except (RedisError, OSError):
                    await asyncio.sleep(0.05)
            self.queue.task_done()


class Actor:
    """A client of one process: it reads and writes documents and checks what it is told."""

    def __init__(self, process: Process, names: list[str], events: Events, rng: random.Random) -> None:
        self._process = process
        self._names = names
        self._events = events
        self._rng = rng
        self._token: Position | None = None
        self.written: dict[str, int] = {}

    async def act(self, *, writes: float) -> None:
        name = self._rng.choice(self._names)
        if self._rng.random() < writes:
            await self._write(name)
        else:
            await self._read(name, with_token=self._rng.random() < 0.5)

    async def _write(self, name: str) -> None:
        source = self._process.source
        if self._rng.random() < 0.3:  # the gateway that wrote went down before its bump: the event is all there is
            _version, position = await source.write(name)
            self._events.queue.put_nowait((name, position))
            return
        version, position = await self._process.write(name)
        self._events.queue.put_nowait((name, position))
        self._token = max(position, self._token or position)
        self.written[name] = max(version, self.written.get(name, 0))

    async def _read(self, name: str, *, with_token: bool) -> None:
        source = self._process.source
        need = self._token if with_token else None
        mine = self.written.get(name, 0)
        version, token, outcome = await self._process.read(name, need)
        assert version >= mine, f"{name}: own write {mine}, read {version} from {outcome}"
        if need is not None:
            promised = source.version(name, need.lsn)
            assert version >= promised, f"{name}: token includes {promised}, read {version} from {outcome}"
        if version:
            assert source.position_of(name, version) <= token, f"{name}: newer than the token told with it"
        self._token = max(token, self._token or token)


async def _disturb(redis: Redis, names: list[str], rng: random.Random) -> None:
    """Flush, evict, cut the invalidation connections: all that may happen to a cache at any time."""
    while True:
        await asyncio.sleep(rng.random() * 0.02)
        match rng.choice(["flush", "evict", "evict", "cut"]):
            case "flush":
                await redis.flushall()
            case "evict":
                await redis.delete(tag_key(rng.choice([*names, names[0].partition(":")[0]])))
            case "cut":
                await redis.client_kill_filter(_type="pubsub")


async def _all_read_the_newest(started: list[Process], names: list[str]) -> None:
    """Within 2 s, and from then on."""
    source = started[0].source
    loop = asyncio.get_running_loop()
    deadline = loop.time() + QUIET_SECONDS
    for process in started:
        for name in names:
            while (await process.read(name))[0] != source.newest(name):
                assert loop.time() < deadline, f"{name} is still old at {process.name}"
                await asyncio.sleep(0.01)
    for process in started:
        for name in names:
            version, _token, outcome = await process.read(name)
            assert version == source.newest(name), f"{name} is old again at {process.name}: {outcome}"


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.generate],  # what interleaves on real connections does not shrink
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 2**32),
    documents=st.integers(1, 4),
    writes=st.sampled_from([0.1, 0.3, 0.6]),
    disturbed=st.booleans(),
)
async def test_tokens_own_writes_and_quiescence(
    stack: Stack, redis: Redis, *, seed: int, documents: int, writes: float, disturbed: bool
) -> None:
    rng = random.Random(seed)
    source = Source(rng)
    organization = uuid.uuid4().hex
    names = [f"{organization}:{number}" for number in range(documents)]
    events = Events(redis, rng)
    async with (
        processes(stack.cache_redis_url, source, PROCESSES, l1_items=rng.choice([1, 100])) as started,
        background.running("replay", source.replay),
        background.running("events", events.run),
    ):

        async def client(process: Process) -> None:
            actor = Actor(process, names, events, rng)
            for _ in range(40):
                await actor.act(writes=writes)

        async with contextlib.AsyncExitStack() as during:
            if disturbed:
                await during.enter_async_context(background.running("disturbance", lambda: _disturb(redis, names, rng)))
            async with asyncio.TaskGroup() as group:
                for process in started:
                    for _ in range(3):
                        group.create_task(client(process))
        await events.queue.join()
        await _all_read_the_newest(started, names)


async def test_a_redis_that_stops_hangs_and_comes_back_breaks_no_promise(stack: Stack, redis: Redis) -> None:
    rng = random.Random(7)
    source = Source(rng)
    source.delay = 0.02
    organization = uuid.uuid4().hex
    names = [f"{organization}:{number}" for number in range(3)]
    events = Events(redis, rng)
    stop = asyncio.Event()
    done = 0
    async with (
        processes(stack.cache_redis_url, source, 2) as started,
        background.running("replay", source.replay),
        background.running("events", events.run),
    ):

        async def client(process: Process) -> None:
            nonlocal done
            actor = Actor(process, names, events, rng)
            while not stop.is_set():
                await actor.act(writes=0.3)
                done += 1

        async def answered(count: int) -> None:
            """Readers and writers go on: wait until so many of their requests have ended."""
            target = done + count
            while done < target:
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for process in started:
                for _ in range(2):
                    group.create_task(client(process))
            async with asyncio.timeout(60):
                await answered(100)
                await stack.parts["cache-redis"].stop()
                await answered(100)
                await stack.parts["cache-redis"].start()
                await answered(100)
                stack.pause("cache-redis")
                await answered(10)
                stack.resume("cache-redis")
                await answered(100)
            stop.set()
        await events.queue.join()
        await _all_read_the_newest(started, names)
