"""Fair shares of connections."""

import asyncio
import uuid

import pytest

from services.tickets.shares import Shares

OURS, THEIRS = uuid.uuid4(), uuid.uuid4()


async def hold(shares: Shares, organization_id: uuid.UUID, until: asyncio.Event, held: list[uuid.UUID]) -> None:
    async with shares.one_of(organization_id, seconds=30):
        held.append(organization_id)
        await until.wait()


async def test_an_organization_holds_its_share_and_no_more_and_another_gets_its_own() -> None:
    shares, end, held = Shares(2), asyncio.Event(), list[uuid.UUID]()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(hold(shares, OURS, end, held))
        while held != [OURS, OURS]:
            await asyncio.sleep(0)
        tasks.create_task(hold(shares, THEIRS, end, held))
        while THEIRS not in held:
            await asyncio.sleep(0)
        assert held == [OURS, OURS, THEIRS]
        end.set()
    assert sorted(held, key=str) == sorted([OURS] * 5 + [THEIRS], key=str)
    assert shares._held == {}


async def test_who_waits_too_long_is_told_and_takes_no_share_away() -> None:
    shares, end, held = Shares(1), asyncio.Event(), list[uuid.UUID]()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(hold(shares, OURS, end, held))
        while not held:
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with shares.one_of(OURS, seconds=0.01):
                pytest.fail("there was none to hold")
        end.set()
    async with shares.one_of(OURS, seconds=30):
        pass
    assert shares._held == {}


async def test_who_is_cancelled_while_waiting_takes_no_share_away() -> None:
    shares, end, held = Shares(1), asyncio.Event(), list[uuid.UUID]()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(hold(shares, OURS, end, held))
        waiting = tasks.create_task(hold(shares, OURS, end, held))
        while not held:
            await asyncio.sleep(0)
        waiting.cancel()
        end.set()
    assert held == [OURS]
    async with shares.one_of(OURS, seconds=30):
        pass


async def test_an_error_gives_the_share_back() -> None:
    shares = Shares(1)
    for _ in range(2):
        with pytest.raises(KeyError):
            async with shares.one_of(OURS, seconds=30):
                raise KeyError
    assert shares._held == {}
