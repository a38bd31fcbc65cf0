"""Several processes of a service at one port, and the parent that looks after them.

Each worker has a listening socket of its own (`SO_REUSEPORT`: the kernel shares new connections out). The parent holds
all of them as well: a socket that is closed loses the connections that wait in its queue, and so the queue of a worker
that died is served by the next in its place.
"""

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import msgspec
import structlog

START_FAILED = 3
BACKLOG = 4096
CALM_SECONDS = 10.0
DEATHS = 5
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_ENDS = frozenset({signal.SIGTERM, signal.SIGINT})
_SIGNALS = _ENDS | {signal.SIGCHLD}
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: a forked child must not load libraries
_REASON_BYTES = 4096  # what a pipe takes in one piece
Sockets = Sequence[socket.socket]
log = structlog.get_logger()


class Worker(msgspec.Struct, frozen=True):
    """What a process of a group knows of itself; the first has number 0."""

    number: int
    sockets: list[socket.socket]
    reasons: int  # where it tells its parent why it cannot start

    def cannot_start(self, sentence: str) -> NoReturn:
        """End, and let the parent say why."""
        os.write(self.reasons, sentence.encode()[: _REASON_BYTES - 1] + b"\0")
        sys.exit(START_FAILED)


def listen(host: str, port: int, count: int) -> list[list[socket.socket]]:
    """For each of `count` workers a socket for every address of `host`, at a port that nobody else listens on.

    Raises:
        OSError: when somebody does, be it another group of the same service.
    """
    groups: list[list[socket.socket]] = [[] for _ in range(count)]
    with contextlib.ExitStack() as opened:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _type, _protocol, _name, address in dict.fromkeys(found):
            where = address
            for group in groups:
                listening = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                first = group is groups[0]
                # The first takes the port for itself alone and only then shares it with the others.
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, not first)
                listening.bind(where)
                listening.listen(BACKLOG)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                where = listening.getsockname()
                group.append(listening)
        opened.pop_all()
    return groups


def become_worker(name: str, sockets: Sequence[list[socket.socket]]) -> Worker:
    """Start a process for each item of `sockets`; returns in each of them.

    The calling process becomes their parent and does not return. It starts a worker again that ended, with growing
    pauses (0.1 to 5 s); passes SIGTERM and SIGINT on, waits until all have ended and exits with 0. It exits with 1 and
    a sentence when a worker cannot start at first, or has ended five times, each within ten seconds. The kernel kills
    the workers of a parent that was killed. No thread and no event loop may run yet.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    gc.collect()
    gc.freeze()  # the workers share this memory as long as nobody writes to it
    group = _Group(name, sockets, mask)
    worker = group.run()
    if worker is None:
        sys.exit(group.failure or 0)
    return worker


class _Place:
    """A worker and those that come after it."""

    def __init__(self, number: int, sockets: list[socket.socket]) -> None:
        self.number = number
        self.sockets = sockets
        self.pid: int | None = None
        self.started = 0.0
        self.due = 0.0  # when it is to be started
        self.lives = 0
        self.deaths = 0  # in a row


class _Group:
    """The parent. It waits for signals and does nothing else."""

    def __init__(self, name: str, sockets: Sequence[list[socket.socket]], mask: set[signal.Signals | int]) -> None:
        self.failure: str | None = None
        self._name = name
        self._mask = mask
        self._places = [_Place(number, its) for number, its in enumerate(sockets)]
        self._stopping = False
        self._pid = os.getpid()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)

    def run(self) -> Worker | None:
        """A worker, in its process; None in the parent when all have ended."""
        while True:
            for place in self._places:
                if place.pid is None and not self._stopping and place.due <= time.monotonic() and self._fork(place):
                    return Worker(place.number, place.sockets, self._write)
            if self._stopping and all(place.pid is None for place in self._places):
                log.info("stopped")
                return None
            told = self._wait()
            if told in _ENDS:
                self._stop()
            self._reap()

    def _wait(self) -> int | None:
        """The next signal; None when a worker is to be started before it."""
        due = [place.due for place in self._places if place.pid is None]
        if self._stopping or not due:
            return signal.sigwait(_SIGNALS)
        told = signal.sigtimedwait(_SIGNALS, max(0.0, min(due) - time.monotonic()))
        return told.si_signo if told is not None else None

    def _fork(self, place: _Place) -> bool:
        """Whether this is the new process."""
        place.started = time.monotonic()
        place.lives += 1
        place.pid = os.fork()
        if place.pid:
            return False
        # A worker is one with its parent: left alone it would hold the port, and nobody would look after it.
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != self._pid:
            os._exit(1)
        os.close(self._read)
        for other in self._places:
            if other is not place:
                _close(other.sockets)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return True

    def _reap(self) -> None:
        """Take note of the processes that have ended; as a container's first process also of those of nobody."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                for place in self._places:
                    if place.pid == ended[0]:
                        place.pid = None
                        self._ended(place, ended[0], os.waitstatus_to_exitcode(ended[1]))

    def _ended(self, place: _Place, pid: int, code: int) -> None:
        if self._stopping:
            return
        now = time.monotonic()
        place.deaths = place.deaths + 1 if now - place.started < CALM_SECONDS else 1
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}"
        if code == START_FAILED and place.lives == 1:
            self._give_up(self._reason())
        elif place.deaths >= DEATHS:
            self._give_up(
                f"{self._name} gives up: worker {place.number} has ended {DEATHS} times in a row, the last time {how}"
            )
        else:
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** (place.deaths - 1), _LONGEST_PAUSE_SECONDS)
            place.due = now + pause
            log.warning("worker_ended", worker=place.number, pid=pid, how=how, restart_in_seconds=pause)

    def _give_up(self, why: str) -> None:
        self.failure = why
        self._stop()

    def _reason(self) -> str:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._read, _REASON_BYTES).partition(b"\0")[0].decode(errors="replace")
        return f"{self._name} cannot start"

    def _stop(self) -> None:
        self._stopping = True
        for place in self._places:
            _close(place.sockets)  # or the port would stay open until the last has ended
            if place.pid is not None:
                os.kill(place.pid, signal.SIGTERM)


def _close(sockets: Sockets) -> None:
    for listening in sockets:
        listening.close()
