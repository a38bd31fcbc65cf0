"""Reads that are asked for while others are under way go together."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from infra.local.stack import Stack
from libs.common.cache import joined
from libs.common.cache.joined import JoinedReads
from tests.support.realtime import until


class Gate:
    """Lets commands to a real Redis through when told, and notes them."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.asked: list[list[str]] = []
        self.open = asyncio.Event()

    async def mget(self, keys: list[str]) -> Any:
        self.asked.append(keys)
        await self.open.wait()
        return await self.redis.mget(keys)


@pytest.fixture
async def gate(stack: Stack) -> AsyncIterator[Gate]:
    redis = Redis.from_url(stack.cache_redis_url)
    await redis.mset({f"joined:{number}": number for number in range(10)})
    yield Gate(redis)
    await redis.aclose()


def reads_of(gate: Gate) -> JoinedReads:
    return JoinedReads(gate)  # type: ignore[arg-type]  # as far as it is used


async def under_way(gate: Gate, reads: JoinedReads, *keys: str) -> "asyncio.Task[list[Any]]":
    count = len(gate.asked)
    task = asyncio.create_task(reads.mget(keys))
    await until(lambda: len(gate.asked) > count)
    return task


async def test_everybody_gets_the_values_they_asked_for(gate: Gate) -> None:
    reads = reads_of(gate)
    first = await under_way(gate, reads, "joined:1")
    wanted = [["joined:2", "joined:none"], ["joined:3"], [], ["joined:2", "joined:4"]]
    others = [asyncio.create_task(reads.mget(keys)) for keys in wanted]
    gone = asyncio.create_task(reads.mget(["joined:9"]))
    await asyncio.sleep(0)
    gone.cancel()
    gate.open.set()
    assert await first == [b"1"]
    assert [await other for other in others] == [[b"2", None], [b"3"], [], [b"2", b"4"]]
    assert len(gate.asked) == 2, "one command for all who waited"
    assert await reads.mget(["joined:5"]) == [b"5"]


async def test_a_command_has_a_bounded_number_of_keys(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "_KEYS", 4)
    reads = reads_of(gate)
    first = await under_way(gate, reads, "joined:0")
    others = [asyncio.create_task(reads.mget([f"joined:{n}"] * 3)) for n in range(3)]
    large = asyncio.create_task(reads.mget([f"joined:{n}" for n in range(6)]))
    await asyncio.sleep(0)
    gate.open.set()
    assert await first == [b"0"]
    assert [await other for other in others] == [[str(n).encode()] * 3 for n in range(3)]
    assert await large == [str(n).encode() for n in range(6)]
    assert [len(keys) for keys in gate.asked] == [1, 3, 3, 3, 6]


async def test_when_redis_fails_all_who_wait_are_told_and_the_next_is_a_new_start(gate: Gate) -> None:
    reads = reads_of(gate)
    working = gate.redis

    class Failing:
        async def mget(self, _keys: list[str]) -> Any:
            raise RedisError("gone")

    gate.redis = Failing()  # type: ignore[assignment]
    first = await under_way(gate, reads, "joined:1")
    second = asyncio.create_task(reads.mget(["joined:2"]))
    await asyncio.sleep(0)
    gate.open.set()
    for task in (first, second):
        with pytest.raises(RedisError, match="gone"):
            await asyncio.wait_for(task, 30)
    gate.redis = working
    assert await reads.mget(["joined:3"]) == [b"3"]
    assert gate.asked[-1] == ["joined:3"]


async def test_who_is_cancelled_takes_nothing_from_the_others(gate: Gate) -> None:
    reads = reads_of(gate)
    first = await under_way(gate, reads, "joined:1")
    second = asyncio.create_task(reads.mget(["joined:2"]))
    await asyncio.sleep(0)
    first.cancel()
    gate.open.set()
    assert await asyncio.wait_for(second, 30) == [b"2"]
