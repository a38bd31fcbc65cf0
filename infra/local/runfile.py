"""What runs in a stack's folder: a lock held by the launcher, and run.json for everybody else."""

import asyncio
import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any, TextIO

import psutil

from infra.local.errors import LauncherError
from infra.local.part import Part
from infra.local.storage import read_json, write_private

PATIENCE_SECONDS = 10


class FolderLock:
    """One stack a folder. The kernel lets go of the lock when the launcher ends, however it ends."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file: TextIO | None = None

    @property
    def taken(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def take(self) -> None:
        """Take the lock; raises LauncherError when another launcher has it."""
        if self._file is not None:
            return
        file = (self._root / "lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            holder = launcher_pid(self._root)
            raise LauncherError(
                f"A stack already runs in {self._root}{f' (pid {holder})' if holder else ''}; "
                "`make status` shows it, `make stop` ends it."
            ) from None
        self._file = file

    def release(self) -> None:
        """Let go of the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None


class RunFile:
    """run.json of a running stack."""

    def __init__(self, root: Path, external: dict[str, str]) -> None:
        self._path = root / "run.json"
        self._root = root
        self._content: dict[str, Any] = {
            "launcher": identify(os.getpid()),
            "parts": {},
            "external": external,
        }

    async def begin(self) -> None:
        """Begin a run: end parts of an earlier one that outlived their launcher, as frozen ones do."""
        await end_leftovers(self._root)
        self._content["parts"] = {}
        self._write()

    def record(self, part: Part) -> None:
        """Note a part's new state."""
        process = part.process if part.alive else None
        self._content["parts"][part.name] = {
            "state": part.state.value,
            "detail": part.detail,
            "port": part.port,
            "log": str(part.log),
            "started": process.started if process else None,
            **identify(process.pid if process else None),
        }
        self._write()

    def end(self) -> None:
        """Forget everything: the stack has stopped."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        # A full disk or a folder that was removed must not end a stack that runs.
        with contextlib.suppress(OSError):
            write_private(self._path, json.dumps(self._content, indent=2))


def read_run(root: Path) -> dict[str, Any]:
    """What run.json says; without parts when there is none or it cannot be read."""
    with contextlib.suppress(LauncherError):
        if content := read_json(root / "run.json"):
            return content
    return {"launcher": {"pid": None}, "parts": {}, "external": {}}


def launcher_pid(root: Path) -> int | None:
    """The process id of the launcher in a folder, None when none is alive."""
    process = find(read_run(root)["launcher"])
    return process.pid if process else None


def identify(pid: int | None) -> dict[str, Any]:
    """A process id with its creation time, which tells it from a later process with the same id."""
    try:
        return {"pid": pid, "created": psutil.Process(pid).create_time() if pid else None}
    except psutil.Error:
        return {"pid": None, "created": None}


def find(identity: dict[str, Any]) -> psutil.Process | None:
    """The running process that `identify` described."""
    if not identity["pid"]:
        return None
    try:
        process = psutil.Process(identity["pid"])
        same = abs(process.create_time() - identity["created"]) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


async def end_leftovers(root: Path) -> int:
    """Kill what an ended launcher has left running in a folder; the number of parts."""
    doomed: list[psutil.Process] = []
    leftovers = [process for part in read_run(root)["parts"].values() if (process := find(part))]
    for process in leftovers:
        with contextlib.suppress(psutil.Error):
            doomed += [process, *process.children(recursive=True)]
    for process in doomed:
        with contextlib.suppress(psutil.Error):
            process.kill()
    await asyncio.to_thread(psutil.wait_procs, doomed, PATIENCE_SECONDS)
    return len(leftovers)
