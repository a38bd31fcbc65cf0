"""Clearing by hand, on a real Redis with two processes: what was cleared is given by neither level again."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from infra.local.stack import Stack
from libs.common.cache.loads import Lives, Loaded
from libs.common.cache.tags import tag_key
from libs.common.cache.ticket_tags import organization_tag, tickets_tag
from libs.common.consistency import Position, Requirement
from tests.support.caching import Process, Source, processes
from tests.support.realtime import until

WAITING_SECONDS = 30
Clear = Callable[["Readers"], Awaitable[object]]


class AwayError(Exception):
    """The source cannot be reached."""


class Readers:
    """One answer of an organization, read through two processes; `current` is what the source says now."""

    def __init__(self, one: Process, other: Process) -> None:
        self.one = one
        self.other = other
        self.organization = uuid.uuid4().hex
        self.path = "/api/tickets?limit=5"
        self.current = 1
        self.away = False
        self.begun = 0
        self.open = asyncio.Event()
        self.open.set()

    async def read(self, process: Process, path: str = "", role: str = "admin") -> tuple[int, str]:
        async def load(requirement: Requirement) -> Loaded:
            said = str(self.current).encode()
            self.begun += 1
            await self.open.wait()
            if self.away:
                raise AwayError
            position = requirement.position or Position(1, 1)
            return Loaded(said, {}, as_of=position, consistency=position)

        entry, outcome = await process.cache.get(
            f"{self.organization}:{role}:{path or self.path}",
            key_type="ticket_list",
            tags=[tickets_tag(self.organization), organization_tag(self.organization)],
            need=None,
            lives=Lives(600, stale=600),
            load=load,
            is_away=lambda error: isinstance(error, AwayError),
        )
        return int(entry.body), outcome

    async def fill(self, path: str = "", role: str = "admin") -> None:
        """Into both levels of both processes."""
        for process in (self.one, self.other):
            await self.read(process, path, role)
            assert (await self.read(process, path, role))[1] == "l1"

    async def reads_newly(self, process: Process) -> None:
        """Within 2 s, and from then on."""
        async with asyncio.timeout(2):
            while (await self.read(process))[0] != self.current:
                await asyncio.sleep(0.005)
        assert {(await self.read(process))[0] for _ in range(5)} == {self.current}


async def clear_tag(readers: Readers) -> None:
    await readers.one.cache.clear_tags([tickets_tag(readers.organization)])


async def clear_organization(readers: Readers) -> None:
    await readers.one.cache.clear_tags([organization_tag(readers.organization)])


async def clear_prefix(readers: Readers) -> int:
    return await readers.one.cache.clear_keys(readers.organization, [f"{readers.organization}:admin:/api/tick"])


ways = pytest.mark.parametrize("clear", [clear_tag, clear_organization, clear_prefix])


@pytest_asyncio.fixture(loop_scope="session")
async def readers(stack: Stack) -> AsyncIterator[Readers]:
    async with processes(stack.cache_redis_url, Source(random.Random(1)), 2) as (one, other):
        yield Readers(one, other)


@ways
async def test_what_is_cleared_is_loaded_anew_by_every_process(readers: Readers, clear: Clear) -> None:
    await readers.fill()
    readers.current = 2
    await clear(readers)
    assert await readers.read(readers.one) == (2, "miss")
    await readers.reads_newly(readers.other)


@ways
async def test_the_process_that_clears_does_not_wait_for_its_own_message(
    readers: Readers, clear: Clear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers.one.cache, "_told", lambda _lines: None)
    await readers.fill()
    readers.open.clear()
    under_way = asyncio.create_task(readers.read(readers.one, "/api/tickets?cursor=x"))
    await until(lambda: readers.begun == 2, seconds=WAITING_SECONDS)
    readers.current = 2
    await clear(readers)
    readers.open.set()
    assert await readers.read(readers.one) == (2, "miss")
    assert await under_way == (1, "miss")
    assert await readers.read(readers.one, "/api/tickets?cursor=x") == (2, "miss")


@ways
async def test_a_load_under_way_is_not_given_to_those_who_come_later(readers: Readers, clear: Clear) -> None:
    readers.open.clear()
    early = [asyncio.create_task(readers.read(process)) for process in (readers.one, readers.other)]
    await until(lambda: readers.begun >= 1, seconds=WAITING_SECONDS)
    readers.current = 2
    await clear(readers)
    late = asyncio.create_task(readers.read(readers.one))
    await until(lambda: readers.begun >= 2, seconds=WAITING_SECONDS)
    readers.open.set()
    assert (await late)[0] == 2
    assert {version for version, _outcome in await asyncio.gather(*early)} <= {1, 2}
    await readers.reads_newly(readers.one)
    await readers.reads_newly(readers.other)


@ways
async def test_a_load_that_ends_after_the_clear_is_kept_by_no_level(readers: Readers, clear: Clear) -> None:
    readers.open.clear()
    early = asyncio.create_task(readers.read(readers.other))
    await until(lambda: readers.begun == 1, seconds=WAITING_SECONDS)
    readers.current = 2
    await clear(readers)
    await until(lambda: not any(not f.overtaken for f in readers.other.cache._flights.values()), seconds=2)
    readers.open.set()
    assert await early == (1, "miss")
    assert await readers.read(readers.one) == (2, "miss")
    await readers.reads_newly(readers.other)


@ways
async def test_what_is_cleared_is_not_even_given_while_its_source_is_away(readers: Readers, clear: Clear) -> None:
    await readers.fill()
    readers.away = True
    await readers.one.cache.bump([tickets_tag(readers.organization)], Position(1, 2))
    assert await readers.read(readers.one) == (1, "stale"), "an ordinary write does not take the last answer away"
    await clear(readers)
    with pytest.raises(AwayError):
        await readers.read(readers.one)
    await readers.one.cache.bump([tickets_tag(readers.organization)], Position(1, 3))
    with pytest.raises(AwayError):
        await readers.read(readers.one)
    await readers.one.redis.delete(
        *map(tag_key, [tickets_tag(readers.organization), organization_tag(readers.organization)])
    )
    with pytest.raises(AwayError):
        await readers.read(readers.one)


@ways
async def test_what_is_cleared_while_its_source_does_not_answer_is_not_given(readers: Readers, clear: Clear) -> None:
    await readers.fill()
    readers.away = True
    await readers.one.cache.bump([tickets_tag(readers.organization)], Position(1, 2))
    readers.open.clear()
    waiting = asyncio.create_task(readers.read(readers.one))
    await until(lambda: readers.begun == 2, seconds=WAITING_SECONDS)
    await clear(readers)
    readers.open.set()
    with pytest.raises(AwayError):
        await waiting


async def test_an_entry_whose_tags_are_lost_may_have_been_cleared(readers: Readers) -> None:
    await readers.fill()
    readers.away = True
    tags = [tickets_tag(readers.organization), organization_tag(readers.organization)]
    await readers.one.cache.bump(tags[:1], Position(1, 2))
    readers.open.clear()
    waiting = asyncio.create_task(readers.read(readers.one))
    await until(lambda: readers.begun == 2, seconds=WAITING_SECONDS)
    await readers.one.redis.delete(*map(tag_key, tags))
    readers.open.set()
    with pytest.raises(AwayError):
        await waiting


async def test_an_entry_that_a_process_takes_up_during_the_removal_is_dropped(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await readers.read(readers.one)
    readers.current = 2
    unlink = readers.one.redis.unlink

    async def slow_unlink(*keys: bytes) -> int:
        assert await readers.read(readers.other) == (1, "l2")
        assert await readers.read(readers.other) == (1, "l1")
        return int(await unlink(*keys))

    monkeypatch.setattr(readers.one.redis, "unlink", slow_unlink)
    assert await clear_prefix(readers) == 1
    await readers.reads_newly(readers.other)


async def test_a_prefix_clears_what_begins_so_and_nothing_else(readers: Readers, stack: Stack) -> None:
    stranger = Readers(readers.one, readers.other)
    cleared = ["/api/tickets/1", "/api/tickets/1?a=[*]", "/api/tickets/1/comments"]
    kept = ["/api/tickets", "/api/search?q=:admin:/api/tickets/1", "/api/ticketsx1", "/x/api/tickets/1"]
    for path in (*cleared, *kept):
        await readers.fill(path)
    await readers.fill(cleared[0], role="agent")
    await stranger.fill(cleared[0])
    beginning = f"{readers.organization}:admin:/api/tickets/"
    assert await readers.one.cache.clear_keys(readers.organization, [beginning]) == len(cleared)
    assert {(await readers.read(readers.one, path))[1] for path in cleared} == {"miss"}
    assert {(await readers.read(readers.one, path))[1] for path in kept} == {"l1"}
    assert (await readers.read(readers.one, cleared[0], role="agent"))[1] == "l1"
    assert (await stranger.read(stranger.one, cleared[0]))[1] == "l1"
    async with processes(stack.cache_redis_url, readers.one.source, 1) as (third,):
        assert {(await readers.read(third, path))[1] for path in kept} == {"l2"}
        assert (await stranger.read(third, cleared[0]))[1] == "l2"
    assert await readers.one.cache.clear_keys(readers.organization, [f"{readers.organization}:admin:/api/[*]"]) == 0


async def test_many_entries_are_removed_in_steps(readers: Readers, stack: Stack) -> None:
    for first in range(0, 2500, 50):
        paths = [f"/api/tickets/{first + number}" for number in range(50)]
        await asyncio.gather(*(readers.read(readers.one, path) for path in paths))
    assert await clear_prefix(readers) == 2500
    async with Redis.from_url(stack.cache_redis_url) as redis:
        assert [key async for key in redis.scan_iter(match=f"entry:{readers.organization}:*")] == []


@ways
async def test_a_clear_that_redis_does_not_take_is_told(stack: Stack, readers: Readers, clear: Clear) -> None:
    await readers.fill()
    async with Redis.from_url(stack.cache_redis_url) as redis:
        await redis.config_set("min-replicas-to-write", 1)  # it answers reads and refuses writes
        try:
            with pytest.raises(Exception, match="NOREPLICAS"):
                await clear(readers)
        finally:
            await redis.config_set("min-replicas-to-write", 0)
    assert (await readers.read(readers.other))[1] == "l1"


async def test_the_state_tells_what_both_levels_hold(readers: Readers, stack: Stack) -> None:
    await readers.fill()
    for _ in range(3):
        await readers.read(readers.one)
    state = await readers.one.cache.state()
    assert (state.entries, state.items, state.listening, state.flights) == (1, 100, True, 0)
    assert state.shared is not None
    assert state.shared.keys >= 3
    assert state.shared.used_bytes > 100_000
    key = f"{readers.organization}:admin:{readers.path}"
    assert readers.one.cache.hottest(f"{readers.organization}:", 5) == [(key, 4)]
    assert readers.one.cache.hottest("another:", 5) == []
    stack.pause("cache-redis")
    try:
        assert (await readers.one.cache.state()).shared is None
    finally:
        stack.resume("cache-redis")
