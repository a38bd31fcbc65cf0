"""Background work of a service: loops that outlive their dependencies' failures."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from libs.common.metrics import BACKGROUND_FAILURES, EVENT_LOOP_LAG

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
_CALM_SECONDS = 30.0
_ENDED_SECONDS = 5.0
T = TypeVar("T")
log = structlog.get_logger()


async def keep_running(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run `run` until it returns; start it again with growing, jittered pauses (0.1 to 2 s) when it raises."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        started = time.monotonic()
        try:
            # In a task of its own: a TaskGroup that fails inside leaves the cancellation count of its task raised
            # (Python 3.11), which would be taken for our own cancellation below.
            await asyncio.ensure_future(run())
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # Even if the clean-up failed with something else. A CancelledError that nobody asked us for is, on
                # the other hand, a library's, and a failure like any other.
                raise asyncio.CancelledError from error
            if time.monotonic() - started > _CALM_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            BACKGROUND_FAILURES.labels(name).inc()
            log.warning("background_task_failed", task=name, error=repr(error), retry_in_seconds=round(pause, 2))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        else:
            return


@contextlib.asynccontextmanager
async def running(name: str, run: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Keep `run` running while the block lasts, then cancel it and wait for its end.

    Whatever has not ended 5 s later is cancelled again: until Python 3.12 asyncio.wait_for, which Redis's client uses,
    swallows a cancellation that comes with its result, and what runs for ever would never hear of it.
    """
    task = asyncio.create_task(keep_running(name, run), name=name)
    try:
        yield
    finally:
        await finish(_end(task))


async def _end(task: asyncio.Task[None]) -> None:
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_ENDED_SECONDS)


async def finish(work: Awaitable[T], *, seconds: float | None = None) -> T:
    """Await `work` to its end even when the caller is cancelled meanwhile, and only then let the cancellation go on.

    A cancelled caller waits for at most `seconds`, then `work` is cancelled as well; None waits as long as it takes.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        given_up = None if seconds is None else time.monotonic() + seconds
        while not task.done():
            left = None if given_up is None else given_up - time.monotonic()
            if left is not None and left <= 0:
                task.cancel()
                left = None
            # Who was cancelled once may be again: its time is over, and its client has gone as well.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task}, timeout=left)
        raise


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Await `work` for at most so long. It is cancelled then, and with its caller, but never waited for.

    `asyncio.timeout` and `wait_for` wait until what they cancel has ended: for ever, if a library swallows the
    cancellation.

    Raises:
        TimeoutError: when it has not ended.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody will look
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        task.cancel()


async def measure_event_loop_lag() -> None:
    """Keep the gauge `event_loop_lag_seconds` current."""
    interval = 0.5
    while True:
        started = time.monotonic()
        await asyncio.sleep(interval)
        EVENT_LOOP_LAG.set(max(0.0, time.monotonic() - started - interval))


async def patiently(what: str, connect: Callable[[], Awaitable[T]], *, seconds: float = 60.0) -> T:
    """Call `connect` until it succeeds, for services and what they need may start in any order.

    Raises:
        Exception: what `connect` raised last, once `seconds` have passed.
    """
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await connect()
        except Exception as error:
            if time.monotonic() > deadline:
                raise
            log.warning("waiting", what=what, error=str(error) or repr(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
