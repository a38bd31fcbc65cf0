"""`make run`: start the stack, show it, watch over it, stop it."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from infra.local import ports
from infra.local.demo import ensure_demo
from infra.local.display import Display
from infra.local.stack import Stack
from infra.local.supervisor import Supervisor

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def up(root: Path, environ: Mapping[str, str], console: Console, services: Sequence[str]) -> None:
    """Run a stack until a signal asks it to stop.

    Raises:
        LauncherError: It could not be started, or a server could not be kept alive. Nothing runs any more.
    """
    begun = time.monotonic()
    display = Display(console)
    stack = Stack(
        root,
        environ=environ,
        ports=ports.from_environment(environ),
        services=services,
        watcher=display.changed,
    )
    with _stop_on_signals(stack, display) as stopped:
        try:
            with display.watching(stack.parts, stack.external):
                await stack.start()
            demo = await ensure_demo(stack) if services else None
            seconds = time.monotonic() - begun
            if demo is None:
                display.say(f"The servers are ready after {seconds:.1f} s.")
            else:
                display.ready(stack.service_url("gateway"), demo, seconds, str(stack.root / "logs"))
            await Supervisor(stack, lambda sentence: display.say(sentence, "yellow")).run()
        except asyncio.CancelledError:
            if not stopped:
                raise
        finally:
            begun = time.monotonic()
            running = {name: part for name, part in stack.parts.items() if part.alive}
            with display.watching(running, {}) if running else contextlib.nullcontext():
                await stack.stop()
    display.say(f"Stopped in {time.monotonic() - begun:.1f} s.")


@contextlib.contextmanager
def _stop_on_signals(stack: Stack, display: Display) -> Iterator[list[int]]:
    """Cancel the current task at the first signal, kill all parts at the next."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        if len(received) > 1:
            for part in stack.parts.values():
                part.kill()
        elif task is not None:
            display.say("")
            task.cancel()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        yield received
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
