"""What the parts of a stack have in common: a state, a process, a way to start, wait and stop."""

import asyncio
import enum
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import ClassVar

from infra.local import process
from infra.local.errors import LauncherError, from_os_error
from infra.local.ports import require_free
from infra.local.process import Command, Process

READY_POLL_SECONDS = 0.05


class State(enum.StrEnum):
    """Where a part is in its life."""

    WAITING = "waiting"
    PREPARING = "preparing"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class Part:
    """One server or service of the stack.

    Subclasses say how to prepare (`prepare`), what to run (`command`), when it answers (`is_ready`) and
    what is left to do then (`finish`). All four may be called again after a crash: they are idempotent.

    Attributes:
        prepared_after: Names of the parts that must be ready before it is prepared.
        started_after: Names of the parts that must be ready before its process starts.
    """

    ready_patience: ClassVar[float] = 60.0
    stop_patience: ClassVar[float] = 15.0

    def __init__(self, name: str, port: int, port_variable: str, log: Path) -> None:
        self.name = name
        self.port = port
        self.port_variable = port_variable
        self.log = log
        self.state = State.WAITING
        self.detail = ""
        self.process: Process | None = None
        self.prepared_after: Sequence[str] = ()
        self.started_after: Sequence[str] = ()
        self.watcher: Callable[[Part], None] = lambda _part: None

    async def prepare(self) -> None:
        """Do what has to be done before the process can start."""

    def command(self) -> Command:
        """What to run."""
        raise NotImplementedError

    async def is_ready(self) -> bool:
        """Whether it answers; any exception but LauncherError means not yet."""
        raise NotImplementedError

    async def finish(self) -> None:
        """Do what needs the running process."""

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.alive

    def report(self, state: State, detail: str = "") -> None:
        """Change the state and tell whoever watches."""
        self.state = state
        self.detail = detail
        self.watcher(self)

    async def start(self, servers: Callable[[], Awaitable[None]] | None = None) -> None:
        """Prepare, wait for the servers that it uses, start and wait until it is ready; raises LauncherError."""
        begun = time.monotonic()
        try:
            self.report(State.PREPARING)
            self._check_ports()
            await self.prepare()
            if servers is not None:
                await servers()
            self.report(State.STARTING)
            self.process = process.spawn(self.command())
            await self._wait_until_ready()
            await self.finish()
        except (LauncherError, OSError) as error:
            cause = from_os_error(error, f"start {self.name}") if isinstance(error, OSError) else error
            self.report(State.FAILED, cause.sentence)
            raise cause from error
        self.report(State.READY, f"{time.monotonic() - begun:.1f} s")

    async def stop(self) -> None:
        """Stop it in good order; does nothing when it does not run."""
        if self.process is None or not self.process.alive:
            return
        self.report(State.STOPPING)
        await self.process.stop(self.stop_patience)
        self.report(State.STOPPED)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send its process a signal."""
        if self.process is not None:
            self.process.signal(number)

    def failure(self) -> str:
        """Why its process ended, in a few words."""
        if self.process is None or self.process.alive:
            return "it did not start."
        return process.reason(self.process.output(), self.process.popen.returncode)

    def _check_ports(self) -> None:
        require_free(self.port, self.name, self.port_variable)

    async def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_patience
        while True:
            if not self.alive:
                raise LauncherError(f"{self.name} ended while it was starting: {self.failure()}", self.log)
            try:
                async with asyncio.timeout(5):
                    if await self.is_ready():
                        return
            except LauncherError:
                raise
            except Exception:  # noqa: BLE001, S110 (whatever a driver raises before its server answers)
                pass
            if time.monotonic() > deadline:
                raise LauncherError(
                    f"{self.name} did not answer on port {self.port} within {self.ready_patience:.0f} s.",
                    self.log,
                )
            await asyncio.sleep(READY_POLL_SECONDS)
