"""Keeps a started stack alive: a part that dies is named, and started again."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from infra.local.errors import LauncherError, first_cause
from infra.local.part import Part, State
from infra.local.process import rotate
from infra.local.services import Service
from infra.local.stack import Stack

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# A part that ran this long had started well: its next crash is a first one again.
HEALTHY_SECONDS = 60.0
SERVER_ATTEMPTS = 3
ROTATION_SECONDS = 30.0


class Supervisor:
    """Watches all parts of a stack.

    A service is started again for as long as it takes, with growing pauses: while somebody works on its code
    it may well be broken for a while. A server that cannot be kept alive ends the stack, for nothing works
    without it.
    """

    def __init__(self, stack: Stack, say: Callable[[str], None]) -> None:
        self._stack = stack
        self._say = say

    async def run(self) -> None:
        """Watch until cancelled; raises LauncherError when a server cannot be kept alive."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._rotate_logs())
                for part in self._stack.parts.values():
                    group.create_task(self._keep(part))
        except BaseExceptionGroup as errors:
            raise first_cause(errors) from None

    async def _rotate_logs(self) -> None:
        while True:
            for part in self._stack.parts.values():
                with contextlib.suppress(OSError):
                    rotate(part.log)
            await asyncio.sleep(ROTATION_SECONDS)

    async def _keep(self, part: Part) -> None:
        crashes = 0
        while part.process is not None:
            await part.process.wait()
            crashes = 1 if time.time() - part.process.started > HEALTHY_SECONDS else crashes + 1
            sentence = f"{part.name} ended: {part.failure()}"
            part.report(State.FAILED, part.failure())
            crashes = await self._revive(part, sentence, crashes)

    async def _revive(self, part: Part, sentence: str, crashes: int) -> int:
        """Start a part until it stays up; the number of failures in a row."""
        while True:
            if not isinstance(part, Service) and crashes > SERVER_ATTEMPTS:
                raise LauncherError(f"{sentence} It has failed {crashes} times in a row.", part.log)
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (crashes - 1), LONGEST_PAUSE_SECONDS)
            self._say(f"{sentence} Log: {part.log} Starting it again in {pause:.1f} s.")
            await asyncio.sleep(pause)
            try:
                await part.start()
            except LauncherError as error:
                sentence = error.sentence
                crashes += 1
                await part.stop()
            else:
                self._say(f"{part.name} is ready again.")
                return crashes
