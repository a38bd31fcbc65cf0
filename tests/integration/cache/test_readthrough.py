"""The rules of read-through, one by one, on a real Redis."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from infra.local.stack import Stack
from libs.common import background
from libs.common.cache.loads import Lives, Load, Loaded
from libs.common.cache.local import Entry
from libs.common.cache.store import LEASE_SECONDS, Begun, Store
from libs.common.cache.tags import PRIMARY, Tags, parse, tag_key
from libs.common.consistency import Position, Requirement
from tests.support.caching import FutureTokenError, Process, Source, processes
from tests.support.realtime import until


@pytest_asyncio.fixture(loop_scope="session")
async def redis(stack: Stack) -> AsyncIterator[Redis]:
    client = Redis.from_url(stack.cache_redis_url)
    yield client
    await client.aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def pair(stack: Stack) -> AsyncIterator[list[Process]]:
    """Two processes over one source whose replica has everything at once."""
    source = Source(random.Random(1))

    async def replay() -> None:
        while True:
            source.replayed = source.lsn
            await asyncio.sleep(0.001)

    async with processes(stack.cache_redis_url, source, 2) as started, background.running("replay", replay):
        yield started


@pytest.fixture
def name() -> str:
    return f"{uuid.uuid4().hex}:1"


class Gate:
    """A load that waits to be let through, and answers with what it saw when it began."""

    def __init__(self, process: Process, name: str) -> None:
        self.process = process
        self.name = name
        self.begun = 0
        self.requirements: list[Requirement] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    @property
    def load(self) -> Load:
        async def load(requirement: Requirement) -> Loaded:
            source = self.process.source
            position = Position(1, source.lsn)
            body = str(source.newest(self.name)).encode()
            self.begun += 1
            self.requirements.append(requirement)
            await self.open.wait()
            if self.error is not None:
                raise self.error
            as_of = max(position, requirement.position or position)
            return Loaded(body, {}, as_of=as_of, consistency=as_of)

        return load

    async def read(self, need: Position | None = None) -> tuple[int, str]:
        entry, outcome = await self.process.cache.get(
            f"document:{self.name}",
            key_type="document",
            tags=[self.name],
            need=need,
            lives=Lives(600),
            load=self.load,
        )
        return int(entry.body), outcome

    def reading(self, need: Position | None = None) -> asyncio.Task[tuple[int, str]]:
        return asyncio.create_task(self.read(need))

    async def has_begun(self, loads: int) -> None:
        await until(lambda: self.begun == loads, seconds=10)


async def floor_of(redis: Redis, tag: str) -> str:
    stored = await redis.get(tag_key(tag))
    assert isinstance(stored, bytes)
    return parse(stored).floor


async def begin(store: Store, name: str) -> Begun:
    begun = await store.begin(name, [name], None)
    assert isinstance(begun, Begun)
    return begun


async def leased(redis: Redis, name: str) -> None:
    async with asyncio.timeout(10):
        while not await redis.exists(f"lease:document:{name}"):
            await asyncio.sleep(0.005)


async def in_l1(process: Process, name: str) -> int:
    """Read until L1 answers: a process hears of its own bump once more from Redis."""
    async with asyncio.timeout(5):
        while True:
            version, _token, outcome = await process.read(name)
            if outcome == "l1":
                return version


async def test_levels_answer_in_their_order(pair: list[Process], name: str) -> None:
    one, other = pair
    await one.source.write(name)
    assert [(await one.read(name))[::2], (await one.read(name))[::2]] == [(1, "miss"), (1, "l1")]
    assert [(await other.read(name))[::2], (await other.read(name))[::2]] == [(1, "l2"), (1, "l1")]


async def test_a_bump_reaches_the_other_process(pair: list[Process], name: str) -> None:
    one, other = pair
    await one.write(name)
    assert await in_l1(other, name) == 1
    await one.write(name)
    async with asyncio.timeout(2):
        while (await other.read(name))[0] != 2:
            await asyncio.sleep(0.005)


async def test_one_load_a_key_at_a_time(pair: list[Process], name: str) -> None:
    gate = Gate(pair[0], name)
    readers = [gate.reading() for _ in range(50)]
    await gate.has_begun(1)
    gate.open.set()
    assert await asyncio.gather(*readers) == [(0, "miss")] * 50
    assert gate.begun == 1


async def test_one_load_a_key_at_a_time_among_processes(pair: list[Process], redis: Redis, name: str) -> None:
    first, second = (Gate(process, name) for process in pair)
    early = first.reading()
    await first.has_begun(1)
    late = [second.reading() for _ in range(10)]
    await leased(redis, name)
    await until(lambda: bool(second.process.cache._flights), seconds=10)
    first.open.set()
    assert await early == (0, "miss")
    async with asyncio.timeout(30):
        assert await asyncio.gather(*late) == [(0, "l2")] * 10
    assert second.begun == 0
    assert not await redis.exists(f"lease:document:{name}")


async def test_who_comes_after_a_bump_waits_for_no_load_that_began_before(pair: list[Process], name: str) -> None:
    one, other = pair
    first, second = (Gate(process, name) for process in pair)
    early = first.reading()
    await first.has_begun(1)
    await other.write(name)
    second.open.set()
    async with asyncio.timeout(LEASE_SECONDS / 2):
        assert await second.read() == (1, "miss")
    first.open.set()
    assert await early == (0, "miss"), "it began before, and is given to nobody else"
    assert (await one.read(name))[0] == 1


async def test_who_needs_more_than_a_load_must_include_does_not_wait_for_it(pair: list[Process], name: str) -> None:
    one, other = pair
    _version, before = await one.write(name)
    settled = Gate(one, name)
    settled.open.set()
    await settled.read()
    await one.write(name)
    first, second = (Gate(process, name) for process in pair)
    early = first.reading()
    await first.has_begun(1)
    _version, newer = await other.source.write(name)
    second.open.set()
    async with asyncio.timeout(LEASE_SECONDS / 2):
        assert (await second.read(newer))[0] == 3
    first.open.set()
    await early
    assert before < newer


async def test_a_process_that_died_while_it_loaded_holds_nobody_up_for_long(
    pair: list[Process], redis: Redis, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libs.common.cache.store.LEASE_SECONDS", 0.3)
    store = Store(redis)
    assert isinstance(await store.begin(f"document:{name}", [name, "document"], None), Begun)  # and never finishes
    gate = Gate(pair[0], name)
    gate.open.set()
    async with asyncio.timeout(10):
        assert await gate.read() == (0, "miss")


async def test_a_load_that_fails_leaves_no_lease(pair: list[Process], redis: Redis, name: str) -> None:
    gate = Gate(pair[0], name)
    gate.error = RuntimeError("no")
    gate.open.set()
    with pytest.raises(RuntimeError):
        await gate.read()
    assert not await redis.exists(f"lease:document:{name}")


async def test_that_there_is_nothing_is_remembered_for_a_short_time(
    pair: list[Process], redis: Redis, name: str
) -> None:
    loads = 0

    async def load(_requirement: Requirement) -> Loaded:
        nonlocal loads
        loads += 1
        return Loaded(b"nothing", {}, as_of=None, consistency=None, status=404)

    async def read(process: Process, need: Position | None = None) -> tuple[int, str]:
        entry, outcome = await process.cache.get(
            name, key_type="document", tags=[name], need=need, lives=Lives(600, missing=5), load=load
        )
        return entry.status, outcome

    one, other = pair
    assert [await read(one), await read(one), await read(other)] == [(404, "miss"), (404, "l1"), (404, "l2")]
    assert 0 < await redis.ttl(f"entry:{name}") <= 5
    assert await read(one, Position(1, 1)) == (404, "miss"), "who knows of a write gets an answer that includes it"
    assert loads == 2


async def test_what_is_old_is_given_while_its_source_is_away_if_it_may_be(pair: list[Process], name: str) -> None:
    one, other = pair
    away = ConnectionError("away")

    async def read(process: Process, need: Position | None = None, *, stale: int = 60) -> tuple[int, str]:
        async def load(_requirement: Requirement) -> Loaded:
            raise away

        entry, outcome = await process.cache.get(
            f"document:{name}",
            key_type="document",
            tags=[name, name.partition(":")[0]],
            need=need,
            lives=Lives(600, stale=stale),
            load=load,
            is_away=lambda error: error is away,
        )
        return int(entry.body), outcome

    await one.write(name)
    assert (await one.read(name))[0] == 1
    _version, newer = await one.write(name)
    for process in pair:
        assert await read(process) == (1, "stale")
    with pytest.raises(ConnectionError):
        await read(other, newer)
    with pytest.raises(ConnectionError):
        await read(other, stale=0)
    assert (await other.read(name))[::2] == (2, "miss"), "what was stale was not kept"


async def test_long_entries_are_compressed_in_redis(pair: list[Process], redis: Redis, name: str) -> None:
    body = b"a long answer " * 1000

    async def load(_requirement: Requirement) -> Loaded:
        return Loaded(body, {}, as_of=None, consistency=None)

    for process, outcome in zip(pair, ("miss", "l2"), strict=True):
        entry, found = await process.cache.get(
            name, key_type="document", tags=[name], need=None, lives=Lives(60), load=load
        )
        assert (entry.body, found) == (body, outcome)
    assert await redis.strlen(f"entry:{name}") < len(body) / 10


async def test_nobody_joins_a_load_that_has_lasted(
    pair: list[Process], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the connection cut, nobody would tell that it was overtaken."""
    monkeypatch.setattr("libs.common.cache.loads.JOINED_SECONDS", 0.0)
    gate = Gate(pair[0], name)
    early = gate.reading(Position(1, 1))
    await gate.has_begun(1)
    late = gate.reading(Position(1, 1))
    await gate.has_begun(2)
    gate.open.set()
    assert list(await asyncio.gather(early, late)) == [(0, "miss")] * 2


async def test_a_waiter_that_goes_away_takes_the_load_from_nobody(pair: list[Process], name: str) -> None:
    gate = Gate(pair[0], name)
    first, second = gate.reading(), gate.reading()
    await gate.has_begun(1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.open.set()
    assert await second == (0, "miss")
    assert gate.begun == 1


async def test_a_load_goes_on_when_every_waiter_has_gone(pair: list[Process], name: str) -> None:
    gate = Gate(pair[0], name)
    reader = gate.reading()
    await gate.has_begun(1)
    reader.cancel()
    gate.open.set()
    await asyncio.wait([reader])
    await until(lambda: not gate.process.cache._flights, seconds=10)
    assert await gate.read() == (0, "l1")
    assert gate.begun == 1


async def test_a_failed_load_is_told_to_all_who_wait_and_kept_from_nobody_else(pair: list[Process], name: str) -> None:
    gate = Gate(pair[0], name)
    gate.error = RuntimeError("no")
    readers = [gate.reading() for _ in range(3)]
    await gate.has_begun(1)
    gate.open.set()
    assert [type(error) for error in await asyncio.gather(*readers, return_exceptions=True)] == [RuntimeError] * 3
    gate.error = None
    assert await gate.read() == (0, "miss")


async def test_after_a_bump_nobody_joins_the_load_that_it_overtook(pair: list[Process], name: str) -> None:
    one, _other = pair
    gate = Gate(one, name)
    early = gate.reading()
    await gate.has_begun(1)
    await one.write(name)
    late = gate.reading()
    await gate.has_begun(2)
    gate.open.set()
    assert await early == (0, "miss")
    assert await late == (1, "miss")
    assert await in_l1(one, name) == 1


async def test_a_load_that_a_later_one_replaced_is_not_kept_when_a_bump_overtakes_both(
    pair: list[Process], name: str
) -> None:
    one, _other = pair
    await one.write(name)
    first, second = Gate(one, name), Gate(one, name)
    early = first.reading()
    await first.has_begun(1)
    with_token = second.reading(Position(1, one.source.lsn))
    await second.has_begun(1)
    second.open.set()
    assert (await with_token)[0] == 1
    await one.write(name)
    first.open.set()
    assert await early == (1, "miss")
    assert (await one.read(name))[0] == 2


async def test_somebody_elses_token_from_the_future_fails_nobody_else(pair: list[Process], name: str) -> None:
    gate = Gate(pair[0], name)
    gate.error = FutureTokenError()
    from_the_future = gate.reading(Position(9, 0))
    await gate.has_begun(1)
    innocent = [gate.reading() for _ in range(3)]
    await asyncio.sleep(0)
    gate.open.set()
    with pytest.raises(FutureTokenError):
        await from_the_future
    gate.error = None
    assert await asyncio.gather(*innocent) == [(0, "miss")] * 3
    assert gate.begun == 2


async def test_a_reader_with_a_newer_token_gets_a_load_of_its_own(pair: list[Process], name: str) -> None:
    one, _other = pair
    gate = Gate(one, name)
    gate.open.set()
    assert await gate.read() == (0, "miss")
    _version, position = await one.source.write(name)  # nobody was told of it but this reader
    assert await gate.read() == (0, "l1")
    assert await gate.read(position) == (1, "miss")
    assert gate.requirements[-1].position == position
    assert await gate.read() == (1, "l1")


async def test_a_load_asks_for_what_the_bumps_were_about(pair: list[Process], redis: Redis, name: str) -> None:
    one, other = pair
    _version, position = await one.write(name)
    gate = Gate(other, name)
    gate.open.set()
    await gate.read()
    assert gate.requirements == [Requirement(None, primary=True)], "an unknown tag: only the primary can tell"
    _version, position = await one.write(name)
    while (await gate.read())[1] == "l1":
        await asyncio.sleep(0.005)
    assert gate.requirements[1:] == [Requirement(position, primary=False)]


async def test_the_floor_of_an_evicted_tag_is_unknown_also_after_a_late_bump(
    pair: list[Process], redis: Redis, name: str
) -> None:
    one, _other = pair
    _version, early = await one.write(name)
    await one.write(name)
    await redis.delete(tag_key(name))
    await Tags(redis).bump([name], early)  # the event of the first write, seconds later
    assert await floor_of(redis, name) == PRIMARY
    gate = Gate(one, name)
    gate.open.set()
    await gate.read()
    assert gate.requirements == [Requirement(None, primary=True)]
    assert await floor_of(redis, name) == Position(1, one.source.lsn).token(), "settled by the load"


async def test_an_unknown_floor_outlives_bumps_and_a_lower_position_lowers_no_floor(redis: Redis, name: str) -> None:
    tags, store = Tags(redis), Store(redis)

    async def load(opened: Begun, position: Position) -> None:
        entry = Entry(b"", {}, position, position, (opened.values[0].stamp,))
        await store.finish(name, [name], opened, entry, seconds=60)

    opened = await begin(store, name)
    await tags.bump([name], Position(1, 5))
    assert await floor_of(redis, name) == PRIMARY
    await load(opened, Position(1, 6))
    assert await floor_of(redis, name) == PRIMARY, "bumped since it was opened"
    await load(await begin(store, name), Position(1, 6))
    assert await floor_of(redis, name) == Position(1, 6).token()
    await tags.bump([name], Position(1, 2))
    assert await floor_of(redis, name) == Position(1, 6).token()
    await tags.bump([name], Position(2, 1))
    assert await floor_of(redis, name) == Position(2, 1).token()


async def test_answers_without_positions_are_cached_side_by_side(pair: list[Process], name: str) -> None:
    async def load(_requirement: Requirement) -> Loaded:
        return Loaded(b"found", {}, as_of=None, consistency=None)

    for key in ("first query", "second query"):
        for process, outcome in zip(pair, ("miss", "l2"), strict=True):
            got = await process.cache.get(
                f"{key} {name}", key_type="search", tags=[name], need=None, lives=Lives(60), load=load
            )
            assert (got[0].body, got[1]) == (b"found", outcome)


async def test_an_entry_of_another_version_of_the_code_is_replaced(
    pair: list[Process], redis: Redis, name: str
) -> None:
    one, other = pair
    await one.source.write(name)
    await redis.set(f"entry:document:{name}", b"\xc1 not ours")
    assert (await one.read(name))[::2] == (1, "miss")
    assert (await other.read(name))[::2] == (1, "l2")


async def test_a_bump_that_redis_did_not_take_is_made_up_for(pair: list[Process], redis: Redis, name: str) -> None:
    """The writer reads its own write, and once Redis takes writes again everybody does, without any event."""
    one, other = pair
    await one.write(name)
    assert await in_l1(one, name) == await in_l1(other, name) == 1
    await redis.config_set("min-replicas-to-write", 1)  # it answers reads and refuses writes
    try:
        await one.write(name)
        for _ in range(3):
            one.cache._l2_retry_at = 0.0  # Redis may be asked again at once; it still holds the old entry
            assert (await one.read(name))[0] == 2
        assert (await other.read(name))[0] == 1, "nobody else could hear of it"
    finally:
        await redis.config_set("min-replicas-to-write", 0)
    one.cache._l2_retry_at = 0.0
    await one.read(f"{name}2")  # whatever goes beyond L1 comes after the bump that is owed
    async with asyncio.timeout(2):
        while (await other.read(name))[0] != 2:
            await asyncio.sleep(0.01)


async def test_a_redis_that_hangs_holds_up_a_request_for_a_second_and_not_again(
    stack: Stack, pair: list[Process], name: str
) -> None:
    one, _other = pair
    await one.source.write(name)
    stack.pause("cache-redis")
    try:
        async with asyncio.timeout(3):  # one second is the client's patience; a second try would take another
            assert (await one.read(name))[::2] == (1, "miss")
            assert (await one.read(name))[0] == 1
    finally:
        stack.resume("cache-redis")
    await until(lambda: one.listening, seconds=10)


async def test_l1_gives_and_keeps_nothing_while_nobody_listens(stack: Stack, pair: list[Process], name: str) -> None:
    one, _other = pair
    await one.write(name)
    assert await in_l1(one, name) == 1
    await stack.parts["cache-redis"].stop()
    try:
        await until(lambda: not one.listening, seconds=5)
        await one.source.write(name)
        assert [(await one.read(name))[::2] for _ in range(2)] == [(2, "miss"), (2, "miss")]
    finally:
        await stack.parts["cache-redis"].start()
    await until(lambda: one.listening, seconds=10)
    one.cache._l2_retry_at = 0.0
    assert [(await one.read(name))[2] for _ in range(2)] == ["miss", "l1"]


async def test_a_cut_connection_empties_l1(stack: Stack, pair: list[Process], redis: Redis, name: str) -> None:
    """Even when the client library makes the connection anew by itself: what was missed meanwhile is unknown."""
    one, other = pair
    await one.write(name)
    assert await in_l1(one, name) == 1
    assert len(one.cache._l1) == 1
    await redis.client_kill_filter(_type="pubsub")
    await other.source.write(name)
    await Tags(redis).bump([name], Position(1, one.source.lsn))
    await until(lambda: one.listening and len(one.cache._l1) == 0, seconds=10)
    assert (await one.read(name))[0] == 2


async def test_a_connection_that_only_seems_to_live_is_noticed(stack: Stack, pair: list[Process], name: str) -> None:
    one, _other = pair
    await one.write(name)
    assert await in_l1(one, name) == 1
    stack.pause("cache-redis")
    try:
        await until(lambda: not one.listening, seconds=5)
        assert len(one.cache._l1) == 0
    finally:
        stack.resume("cache-redis")
    await until(lambda: one.listening, seconds=10)


async def test_without_redis_reads_go_to_the_primary_without_much_delay(
    stack: Stack, pair: list[Process], name: str
) -> None:
    one, _other = pair
    await stack.parts["cache-redis"].stop()
    try:
        async with asyncio.timeout(10):  # retries with growing pauses would take seconds each
            for version in range(1, 21):
                assert (await one.write(name))[0] == version
                assert (await one.read(name))[0] == version
    finally:
        await stack.parts["cache-redis"].start()
