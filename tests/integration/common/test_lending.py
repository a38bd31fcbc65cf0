"""Connections pass from one who asks to the next, and whatever is wrong with one ends its way."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from infra.local.stack import Stack
from libs.common.lending import Lending
from libs.common.postgres import UNAVAILABLE_ERRORS, given_up_after, transaction_on, translate_error
from libs.common.query_metrics import MeasuredConnection
from tests.support.lending import PID, lent_by, pid_of
from tests.support.tickets import eventually

SLEEP = "SELECT pg_sleep(60)"
STATE = "SELECT state, query FROM pg_stat_activity WHERE pid = $1"
TERMINATE = "SELECT pg_terminate_backend($1)"


async def waiting(connections: Lending, number: int = 1) -> None:
    async def they_wait() -> bool:
        return connections._waiting == number

    await eventually(they_wait)


def is_clean(connection: asyncpg.Connection) -> bool:
    """Neither in a transaction nor in the middle of a statement that was cancelled."""
    return not connection.is_in_transaction() and not connection._protocol._is_cancelling()


@pytest.mark.usefixtures("endless_rounds")
async def test_a_connection_given_back_is_the_next_one_lent(stack: Stack) -> None:
    async with lent_by(stack, maximum=3) as connections:
        async with connections.lend() as first, connections.lend() as second:
            assert first is not second
            assert connections.lent == {first, second}
        assert connections.lent == set()
        end_of_round = connections._end_of_round
        # Had the pool taken them back, its proxies for the same connections would be new ones.
        async with connections.lend() as third, connections.lend() as fourth:
            assert {third, fourth} == {first, second}
            assert await third.fetchval("SELECT 1") == 1
        assert connections._end_of_round is end_of_round is not None, "however many are given back"


@pytest.mark.usefixtures("endless_rounds")
async def test_who_waits_gets_the_next_one_given_back(stack: Stack) -> None:
    """And does not wait for the end of the round."""
    async with lent_by(stack, maximum=2) as connections, connections.lend() as kept:
        async with connections.lend() as connection:
            pid = await connection.fetchval(PID)
            waits = asyncio.create_task(pid_of(connections))
            await waiting(connections)
            assert len(connections.lent) == 2
        assert await waits == pid
        async with connections.lend() as other:
            assert other is not kept


@pytest.mark.usefixtures("endless_rounds")
async def test_no_more_than_the_maximum_are_lent_and_all_get_their_turn(stack: Stack) -> None:
    most = 0

    async def use(connections: Lending) -> None:
        nonlocal most
        for _ in range(5):
            async with connections.lend() as connection:
                most = max(most, len(connections.lent))
                assert is_clean(connection)
                await connection.fetchval("SELECT 1")

    async with lent_by(stack, maximum=3) as connections:
        await asyncio.gather(*(use(connections) for _ in range(20)))
        assert most == 3
        assert connections.pool.get_size() == 3


@pytest.mark.usefixtures("endless_rounds")
async def test_who_waits_in_vain_is_told_and_the_next_is_served(stack: Stack) -> None:
    async with lent_by(stack, maximum=1) as connections:
        async with connections.lend() as held:
            with pytest.raises(TimeoutError) as raised:
                async with connections.lend(0.05):
                    pytest.fail("there was none")
            problem = translate_error(raised.value)
            assert problem is not None
            assert problem.status == 503
        async with connections.lend() as next_one:  # nobody waits any more, so it was kept at hand
            assert next_one is held


async def fail_in_a_transaction(connection: asyncpg.Connection) -> None:
    await connection.execute("BEGIN")
    raise ZeroDivisionError


async def fail_in_a_failed_transaction(connection: asyncpg.Connection) -> None:
    await connection.execute("BEGIN")
    await connection.execute("SELECT 1 / 0")


async def leave_a_transaction_open(connection: asyncpg.Connection) -> None:
    await connection.execute("BEGIN")


async def run_out_of_time(connection: asyncpg.Connection) -> None:
    await connection.execute(SLEEP, timeout=0.05)


@pytest.mark.usefixtures("endless_rounds")
@pytest.mark.parametrize(
    "leave", [fail_in_a_transaction, fail_in_a_failed_transaction, leave_a_transaction_open, run_out_of_time]
)
async def test_what_one_leaves_behind_the_next_does_not_find(stack: Stack, leave: Callable[[Any], Any]) -> None:
    async with lent_by(stack, maximum=1) as connections:
        with contextlib.suppress(ZeroDivisionError, asyncpg.DivisionByZeroError, TimeoutError):
            async with connections.lend() as connection:
                await leave(connection)
        assert connections._at_hand == [], "nor does it wait for the next to be ended"
        async with connections.lend() as connection:
            assert is_clean(connection)
            assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.usefixtures("endless_rounds")
async def test_a_statement_given_up_by_a_block_that_goes_on_does_not_run_into_the_next(stack: Stack) -> None:
    async with lent_by(stack, maximum=1) as connections:
        async with connections.lend() as connection:
            with contextlib.suppress(TimeoutError):
                await run_out_of_time(connection)
        for number in range(20):  # the driver's cancellation hits none of them
            async with connections.lend(1) as connection:
                assert await connection.fetchval("SELECT $1::int", number, timeout=5) == number


@pytest.mark.usefixtures("endless_rounds")
@pytest.mark.parametrize("read_only", [None, False, True], ids=["alone", "in a write", "in a read"])
async def test_a_statement_cancelled_in_the_middle_is_over_before_the_next(
    stack: Stack, *, read_only: bool | None
) -> None:
    watch = await stack.primary.connect()
    pids: list[int] = []

    async def sleep(connections: Lending) -> None:
        async with connections.lend() as connection:
            pids.append(await connection.fetchval(PID))
            async with (
                contextlib.nullcontext()
                if read_only is None
                else transaction_on(connection, organization_id=uuid.uuid4(), read_only=read_only)
            ):
                await connection.execute(SLEEP)

    async def sleeps() -> bool:
        row = await watch.fetchrow(STATE, pids[0]) if pids else None
        return row is not None and (row["state"], row["query"]) == ("active", SLEEP)

    async with lent_by(stack, maximum=1) as connections:
        task = asyncio.create_task(sleep(connections))
        await eventually(sleeps)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with connections.lend() as connection:
            assert is_clean(connection)
            assert await connection.fetchval("SELECT 1") == 1
    await watch.close()


@pytest.mark.usefixtures("endless_rounds")
@pytest.mark.parametrize("statement", ["BEGIN", "COMMIT"])
async def test_a_read_cancelled_while_it_begins_or_ends_is_over_before_the_next(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    execute = MeasuredConnection.execute

    async def cancelled(connection: MeasuredConnection, query: str, *args: Any, **options: Any) -> Any:
        task = asyncio.current_task()
        if query.startswith(statement) and task is not None:
            # Called before the loop looks for an answer of the server.
            asyncio.get_running_loop().call_soon(task.cancel)
        return await execute(connection, query, *args, **options)

    async def read(connections: Lending) -> None:
        async with (
            connections.lend() as connection,
            transaction_on(connection, organization_id=uuid.uuid4(), read_only=True),
        ):
            await connection.fetchval("SELECT 1")

    complaints: list[dict[str, Any]] = []
    async with lent_by(stack, maximum=1) as connections:
        await read(connections)
        with monkeypatch.context() as patched:
            patched.setattr(MeasuredConnection, "execute", cancelled)
            patched.setattr(asyncio.get_running_loop(), "call_exception_handler", complaints.append)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.create_task(read(connections))
        assert complaints == [], "no transaction is left for the driver to end"
        async with connections.lend() as connection:
            assert is_clean(connection)
            assert await connection.fetchval("SHOW transaction_read_only") == "off"
            await connection.execute("CREATE TEMPORARY TABLE written ()")


async def outstay(connections: Lending) -> None:
    async with connections.lend() as connection:
        with given_up_after(connection, 0.05):
            await connection.execute(SLEEP)


@pytest.mark.usefixtures("endless_rounds")
async def test_a_connection_that_ended_while_it_was_lent_is_not_lent_again(stack: Stack) -> None:
    watch = await stack.primary.connect()
    async with lent_by(stack, maximum=1) as connections:
        async with connections.lend() as connection:
            by_us = await connection.fetchval(PID)
            connection.terminate()
        by_server = await pid_of(connections)
        async with connections.lend() as connection:
            await watch.execute(TERMINATE, by_server)
            with pytest.raises(UNAVAILABLE_ERRORS):
                await connection.fetchval("SELECT 1")
        given_up = await pid_of(connections)
        with pytest.raises((asyncpg.ConnectionDoesNotExistError, asyncpg.InterfaceError)):
            await outstay(connections)
        last = await pid_of(connections)
        assert len({by_us, by_server, given_up, last}) == 4
        assert connections.lent == set()
    await watch.close()


@pytest.mark.usefixtures("endless_rounds")
async def test_a_connection_that_ended_while_it_was_at_hand_is_not_lent_again(stack: Stack) -> None:
    watch = await stack.primary.connect()
    async with lent_by(stack, maximum=1) as connections:
        pid = await pid_of(connections)
        await watch.execute(TERMINATE, pid)

        async def noticed() -> bool:
            return bool(connections.pool.get_size() == 0)

        await eventually(noticed)
        assert await pid_of(connections) != pid
    await watch.close()


@pytest.mark.usefixtures("endless_rounds")
async def test_what_ended_a_connection_is_not_told_instead_of_what_ended_the_work(stack: Stack) -> None:
    """A cancelled write on a connection that was closed meanwhile ends as cancelled."""

    async def write(connections: Lending, begun: asyncio.Event) -> None:
        async with connections.lend() as connection, transaction_on(connection, organization_id=None):
            connection.terminate()
            await asyncio.sleep(0)  # the pool takes note
            begun.set()
            await asyncio.Event().wait()

    async with lent_by(stack, maximum=1) as connections:
        begun = asyncio.Event()
        task = asyncio.create_task(write(connections, begun))
        async with asyncio.timeout(30):
            await begun.wait()
        task.cancel()
        await asyncio.wait({task}, timeout=30)
        assert task.cancelled()
        async with connections.lend() as connection:
            assert await connection.fetchval("SELECT 1") == 1
