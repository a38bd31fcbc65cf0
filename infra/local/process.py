"""A child process that never outlives the launcher, with its output in a log file.

Children are forked from the thread that calls `spawn`. Linux sends a child its parent-death signal when
that *thread* ends, so call it from the main thread only (an asyncio program does by itself).
"""

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from infra.local.account import Account
from infra.local.errors import LauncherError, from_os_error

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: a forked child must not load libraries

LOG_LIMIT_BYTES = 20_000_000
_TELLING = re.compile(r"\b(error|fatal|panic)\b|Error|Exception", re.IGNORECASE)


@dataclass(frozen=True)
class Command:
    """What to start.

    Attributes:
        argv: Program and arguments.
        environment: The complete environment of the child.
        folder: Its working directory.
        log: File that stdout and stderr are appended to.
        account: Account to run it under; None keeps the launcher's.
        stop_signal: Asks it to end in good order.
        orphan_signal: What the kernel sends it when the launcher is gone without a goodbye.
    """

    argv: Sequence[str | Path]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGKILL


@dataclass
class Process:
    """A started command."""

    command: Command
    popen: subprocess.Popen[bytes]
    log_start: int
    started: float = field(default_factory=time.time)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    async def wait(self) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return self.popen.wait()
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            while (code := self.popen.poll()) is None:
                await ended.wait()
            return code
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    async def stop(self, patience: float) -> None:
        """Ask it to end; kill it and its descendants after `patience` seconds."""
        if not self.alive:
            return
        tree = self._tree()
        self.resume()
        self.signal(self.command.stop_signal)
        try:
            async with asyncio.timeout(patience):
                await self.wait()
        except TimeoutError:
            for member in tree:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            await self.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the process itself; nothing happens when it has ended."""
        if self.alive:
            self.popen.send_signal(number)

    def pause(self) -> None:
        """Freeze the process and all its descendants: it accepts connections and never answers."""
        for member in self._tree():
            with contextlib.suppress(psutil.Error):
                member.suspend()

    def resume(self) -> None:
        """Undo `pause`."""
        for member in self._tree():
            with contextlib.suppress(psutil.Error):
                member.resume()

    def output(self) -> str:
        """What this process has written to its log (at most the last 64 kB)."""
        return read_tail(self.command.log, self.log_start)

    def _tree(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def spawn(command: Command, stdout: Path | None = None) -> Process:
    """Start a command; `stdout` sends its standard output to a file of its own instead of the log."""
    try:
        command.log.parent.mkdir(parents=True, exist_ok=True)
        rotate(command.log)
        with contextlib.ExitStack() as files:
            log = files.enter_context(command.log.open("ab"))
            output = files.enter_context(stdout.open("wb")) if stdout else log
            log_start = log.tell()
            popen = subprocess.Popen(
                [str(part) for part in command.argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                cwd=command.folder,
                env=dict(command.environment),
                # A session of its own: the terminal's Ctrl-C reaches only the launcher.
                start_new_session=True,
                user=command.account.uid if command.account else None,
                group=command.account.gid if command.account else None,
                extra_groups=[] if command.account else None,
                preexec_fn=_die_with_parent(os.getpid(), command.orphan_signal),  # noqa: PLW1509 (see module)
            )
    except OSError as error:
        raise from_os_error(error, f"start {Path(command.argv[0]).name}") from error
    return Process(command, popen, log_start)


async def run(command: Command, doing: str, *, stdout: Path | None = None, allowed: Sequence[int] = (0,)) -> int:
    """Run a command to its end and return its exit code.

    Raises:
        LauncherError: The exit code is not among `allowed`; the sentence starts with `doing`.
    """
    process = spawn(command, stdout)
    try:
        code = await process.wait()
    finally:
        await process.stop(patience=0)
    if code not in allowed:
        raise LauncherError(f"{doing} failed: {reason(process.output(), code)}", command.log)
    return code


def reason(output: str, code: int) -> str:
    """Why a process ended, in a few words, judged by what it wrote."""
    lowered = output.lower()
    if "no space left on device" in lowered or "disk quota exceeded" in lowered:
        return "the disk is full."
    if "address already in use" in lowered:
        return "its port is already in use."
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if _TELLING.search(line)] or (lines if code > 0 else [])
    return f"{how}: {told[-1][:300]}" if told else f"{how}."


def read_tail(path: Path, start: int = 0, limit: int = 65_536) -> str:
    """The text of a file from byte `start`, at most the last `limit` bytes; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start if start <= size else 0, size - limit))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def rotate(log: Path) -> None:
    """Keep a log below its limit. It is copied and cut, not renamed: the child writes to the open file."""
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.with_suffix(".old.log").write_text(read_tail(log, limit=LOG_LIMIT_BYTES // 2))
        os.truncate(log, 0)


def _die_with_parent(parent: int, number: int) -> Callable[[], None]:
    def arm() -> None:
        # After setuid (which clears it) and before exec. The parent may have died in between.
        if _LIBC.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)

    return arm
