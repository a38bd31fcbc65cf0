"""What is at hand returns to the pool in rounds, so its connections are recycled, renewed and closed; opening some."""

import asyncio
import socket
from typing import Any

import asyncpg
import pytest

from infra.local.ports import HOST, free_ports
from infra.local.stack import Stack
from libs.common import lending, postgres
from libs.common.lending import Lending
from libs.common.postgres import UNAVAILABLE_ERRORS, create_pool
from tests.support.lending import PID, ROLE, lent_by, pid_of
from tests.support.tickets import eventually


async def test_a_connection_in_constant_use_is_recycled_after_its_uses(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "ROUND_SECONDS", 0.01)
    url = stack.primary.url(superuser=True)
    connections = Lending(await asyncpg.create_pool(url, min_size=0, max_size=1, max_queries=5))
    pids = set()

    async def some_have_come() -> bool:
        for _ in range(10):
            pids.add(await pid_of(connections))
        return len(pids) >= 3

    await eventually(some_have_come)
    await connections.close()


async def test_a_round_ends_while_every_connection_is_always_lent(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a round finds nothing at hand; it is what is lent then that goes back to the pool."""
    monkeypatch.setattr(lending, "ROUND_SECONDS", 0.01)
    async with lent_by(stack, maximum=1) as connections:
        await pid_of(connections)
        async with connections.lend() as connection:

            async def ended() -> bool:
                return connections._end_of_round is None

            await eventually(ended)
        assert connections.pool.get_idle_size() == 1
        async with connections.lend() as next_one:
            assert next_one is not connection


@pytest.mark.usefixtures("endless_rounds")
async def test_renewal_leaves_no_old_connection_in_use(stack: Stack) -> None:
    async with lent_by(stack, maximum=2) as connections:
        async with connections.lend() as lent:
            lent_pid = await lent.fetchval(PID)
            at_hand_pid = await pid_of(connections)
            await connections.renew()
            assert await lent.fetchval("SELECT 1") == 1, "whoever has one may finish"
        async with connections.lend() as first, connections.lend() as second:
            pids = {await first.fetchval(PID), await second.fetchval(PID)}
        assert pids.isdisjoint({lent_pid, at_hand_pid})


@pytest.mark.usefixtures("endless_rounds")
async def test_a_connection_that_was_being_made_at_a_renewal_is_not_handed_on(stack: Stack) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(_connection: asyncpg.Connection) -> None:
        begun.set()
        await go_on.wait()

    url = stack.primary.url(superuser=True)
    connections = Lending(await asyncpg.create_pool(url, min_size=0, max_size=1, init=slowly))
    asked = asyncio.create_task(pid_of(connections))
    await begun.wait()
    await connections.renew()
    go_on.set()
    assert await asked != await pid_of(connections)
    await connections.close()


async def test_idle_connections_are_back_in_the_pool_after_a_round(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "ROUND_SECONDS", 0.05)
    async with lent_by(stack, maximum=2) as connections:
        async with connections.lend(), connections.lend():
            pass
        assert connections.pool.get_idle_size() == 0, "at hand"

        async def back() -> bool:
            return bool(connections.pool.get_idle_size() == 2)

        await eventually(back)
        assert (connections._at_hand, connections._end_of_round) == ([], None)


@pytest.mark.usefixtures("endless_rounds")
async def test_closing_waits_a_little_for_what_is_lent_and_leaves_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "_CLOSE_SECONDS", 0.1)
    before = asyncio.all_tasks()
    async with lent_by(stack, maximum=2) as connections:
        async with connections.lend() as lent:
            await pid_of(connections)
            async with asyncio.timeout(30):
                await connections.close()
            with pytest.raises(asyncpg.InterfaceError):
                await lent.fetchval("SELECT 1")
            with pytest.raises(UNAVAILABLE_ERRORS):
                await pid_of(connections)
        assert (connections.pool.get_size(), connections._at_hand, connections._end_of_round) == (0, [], None)
        await no_task_but(before)


@pytest.mark.usefixtures("endless_rounds")
async def test_closing_lets_what_is_lent_come_back(stack: Stack) -> None:
    async with lent_by(stack, maximum=1) as connections:
        async with connections.lend() as connection:
            closing = asyncio.create_task(connections.close())
            assert await connection.fetchval("SELECT 1") == 1
            assert not closing.done()
        await closing
        assert (connections._at_hand, connections._end_of_round) == ([], None)


@pytest.mark.usefixtures("endless_rounds")
async def test_opening_makes_as_many_as_are_asked_for(stack: Stack) -> None:
    async with lent_by(stack, maximum=5) as connections:
        async with connections.lend():
            connections.open(3)

            async def opened() -> bool:
                return (connections.pool.get_size(), connections.pool.get_idle_size()) == (3, 2)

            await eventually(opened)
        await until_done(connections)
        connections.open(2)
        await until_done(connections)
        assert connections.pool.get_size() == 3, "there are enough"


async def test_opening_where_there_is_no_server_is_no_error() -> None:
    (port,) = free_ports(1)
    url = f"postgresql://somebody:secret@{HOST}:{port}/nothing"
    connections = Lending(await create_pool(url, role=ROLE, service="test", minimum=0, maximum=3))
    connections.open(3)
    (task,) = connections._tasks
    await task  # raises what it failed with
    with pytest.raises(OSError, match=str(port)):
        await pid_of(connections)
    await connections.close()


async def test_closing_does_not_wait_for_connections_that_a_silent_server_never_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lending, "ACQUIRE_SECONDS", 3600.0)
    monkeypatch.setattr(postgres, "CONNECT_SECONDS", 3600.0)
    with socket.create_server((HOST, 0)) as silent:
        url = f"postgresql://somebody:secret@{HOST}:{silent.getsockname()[1]}/nothing"
        connections = Lending(await create_pool(url, role=ROLE, service="test", minimum=0, maximum=3))
        connections.open(3)
        silent.setblocking(False)
        connected, _address = await asyncio.get_running_loop().sock_accept(silent)
        with connected:
            async with asyncio.timeout(30):
                await connections.close()
            assert not connections._tasks, "nothing goes on"


async def until_done(connections: Lending) -> None:
    async def nothing_to_do() -> bool:
        return not connections._tasks

    await eventually(nothing_to_do)


async def no_task_but(before: set[asyncio.Task[Any]]) -> None:
    async def none_left() -> bool:
        return asyncio.all_tasks() <= before

    await eventually(none_left)
