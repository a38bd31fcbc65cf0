"""Background loops outlive failures and end when they are told to."""

import asyncio
import contextlib

import pytest

from libs.common import background
from libs.common.metrics import BACKGROUND_FAILURES


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(background, "_LONGEST_PAUSE_SECONDS", 0.0)


def failures(name: str) -> float:
    value: float = BACKGROUND_FAILURES.labels(name)._value.get()
    return value


async def test_what_fails_is_started_again_and_counted() -> None:
    runs = 0

    async def fails_twice() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ConnectionError

    await background.keep_running("twice", fails_twice)
    assert (runs, failures("twice")) == (3, 2)


async def test_what_ends_is_not_started_again() -> None:
    runs = 0

    async def ends() -> None:
        nonlocal runs
        runs += 1

    await background.keep_running("once", ends)
    assert (runs, failures("once")) == (1, 0)


async def test_work_that_swallows_its_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_ENDED_SECONDS", 0.01)
    started, swallowed = asyncio.Event(), 0

    async def stubborn() -> None:
        nonlocal swallowed
        started.set()
        while swallowed < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.Event().wait()

    async def block() -> None:
        async with background.running("stubborn", stubborn):
            await started.wait()

    await asyncio.wait_for(block(), 30)
    assert swallowed == 2


async def test_a_block_that_is_cancelled_while_its_work_ends_waits_for_it_and_is_cancelled_then() -> None:
    started, ending, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await go.wait()

    async def block() -> None:
        async with background.running("work", work):
            await started.wait()

    caller = asyncio.create_task(block())
    await asyncio.wait_for(ending.wait(), 30)
    caller.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not caller.done()
    go.set()
    await asyncio.wait({caller}, timeout=30)
    assert caller.cancelled()


async def test_it_runs_while_the_block_lasts_and_has_ended_after_it() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # cleaning up takes a moment
            ended.set()

    async with background.running("work", work):
        await started.wait()
        assert not ended.is_set()
    assert ended.is_set()


async def test_a_clean_up_that_fails_does_not_bring_cancelled_work_back() -> None:
    runs = 0
    started = asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionError("the server is away")

    async with asyncio.timeout(5):
        async with background.running("unclean", work):
            await started.wait()
    assert runs == 1


async def test_a_timeout_inside_the_work_is_a_failure_and_no_cancellation() -> None:
    runs = 0

    async def times_out_once() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()

    await background.keep_running("timeout", times_out_once)
    assert runs == 2


async def test_work_is_started_again_when_a_task_group_in_it_failed() -> None:
    """As the relay: its tasks live in a TaskGroup, and a failing one once ended it for good without a word."""
    started = 0
    again = asyncio.Event()

    async def fail() -> None:
        raise OSError("the database is gone")

    async def work() -> None:
        nonlocal started
        started += 1
        if started == 3:
            again.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
            tasks.create_task(asyncio.sleep(60))

    async with background.running("work", work), asyncio.timeout(10):
        await again.wait()


async def test_cancelling_in_a_pause_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_FIRST_PAUSE_SECONDS", 3600.0)
    monkeypatch.setattr(background, "_LONGEST_PAUSE_SECONDS", 3600.0)
    failed = asyncio.Event()

    async def fails() -> None:
        failed.set()
        raise ConnectionError

    async with asyncio.timeout(5):
        async with background.running("pausing", fails):
            await failed.wait()


async def test_waiting_patiently_returns_what_came_at_last() -> None:
    tries = 0

    async def connect() -> str:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise OSError("refused")
        return "connected"

    assert await background.patiently("the database", connect) == "connected"


async def test_patience_ends_with_the_last_error() -> None:
    async def connect() -> str:
        raise OSError("refused")

    with pytest.raises(OSError, match="refused"):
        await background.patiently("the database", connect, seconds=0)


async def test_a_cancellation_that_nobody_asked_for_is_a_failure() -> None:
    """Client libraries cancel tasks of their own and let it out."""
    runs = 0

    async def cancelled_once() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise asyncio.CancelledError

    await background.keep_running("foreign", cancelled_once)
    assert runs == 2


async def _cancelled_while_finishing(
    work: asyncio.Event, *, seconds: float | None
) -> tuple[asyncio.Task[None], list[str]]:
    """Start work that ends with `work`, cancel who waits for it, and return that task and what the work did."""
    did: list[str] = []
    begun = asyncio.Event()

    async def commit() -> None:
        begun.set()
        try:
            await work.wait()
            did.append("done")
        except asyncio.CancelledError:
            did.append("cancelled")
            raise

    waiter = asyncio.create_task(background.finish(commit(), seconds=seconds))
    await begun.wait()
    waiter.cancel()
    return waiter, did


async def test_work_that_must_finish_outlives_its_callers_cancellation() -> None:
    work = asyncio.Event()
    waiter, did = await _cancelled_while_finishing(work, seconds=None)
    await asyncio.sleep(0)
    assert not waiter.done()
    work.set()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert did == ["done"]


async def test_work_that_does_not_finish_in_time_is_cancelled_after_all() -> None:
    waiter, did = await _cancelled_while_finishing(asyncio.Event(), seconds=0.01)
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert did == ["cancelled"]


async def test_what_must_be_finished_is_finished_however_often_the_caller_is_cancelled() -> None:
    go, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await go.wait()
        ended.set()

    caller = asyncio.create_task(background.finish(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


async def test_a_cancelled_caller_waits_for_as_long_as_was_said_however_often_it_is_cancelled() -> None:
    given_up = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    caller = asyncio.create_task(background.finish(work(), seconds=0.05))
    for _ in range(3):
        await asyncio.sleep(0.01)
        caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(caller), 30)
    assert given_up.is_set()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_work_within_a_time_that_swallows_its_cancellation_is_not_waited_for(*, cancelled: bool) -> None:
    go, ended = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()
        ended.set()

    waiter = asyncio.create_task(background.within(60 if cancelled else 0.01, stubborn()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if cancelled:
        waiter.cancel()
    await asyncio.wait({waiter}, timeout=30)
    if cancelled:
        assert waiter.cancelled()
    else:
        assert isinstance(waiter.exception(), TimeoutError)
    go.set()
    await asyncio.wait_for(ended.wait(), 30)


async def test_work_within_a_time_gives_its_result_or_its_error_and_is_cancelled_after_it() -> None:
    assert await background.within(30, asyncio.sleep(0, "result")) == "result"
    given_up = asyncio.Event()

    async def fail() -> None:
        raise ValueError("of the work")

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    with pytest.raises(ValueError, match="of the work"):
        await background.within(30, fail())
    with pytest.raises(TimeoutError):
        await background.within(0.01, slow())
    await asyncio.wait_for(given_up.wait(), 30)
