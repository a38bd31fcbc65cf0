"""When an instance of a service is left out for a while, and how often a request may be sent again."""

import enum
from collections.abc import Callable

IN_A_ROW = 5
WINDOW_SECONDS = 10.0
WINDOW_REQUESTS = 20
FAILED_SHARE = 0.5
OPEN_SECONDS = 2.0
RETRY_SHARE = 0.2
RETRIES_AT_LEAST = 10
_SECONDS = 10


class Circuit(enum.Enum):
    """Closed: requests pass. Open: the instance is left out. Half-open: one request is to try it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """A circuit breaker (M. Nygard, Release It!, 2nd ed., section 5.2). Times are of `time.monotonic`.

    It opens after five failures in a row, when half of at least 20 requests within ten seconds have failed, and at
    once by `open`. Two seconds later `rested` lets a trial in: its success closes the circuit, its failure opens it
    again. An instance that was only unreachable needs no trial: that it answers is all there is to know. Requests
    that began before it opened have no say any more.
    """

    __slots__ = (
        "_changed",
        "_failed",
        "_in_a_row",
        "_opened",
        "_requests",
        "_unreachable",
        "_window",
        "circuit",
        "trying",
    )

    def __init__(self, changed: Callable[[Circuit, str], None] = lambda _circuit, _reason: None) -> None:
        """`changed` is told the new state and why."""
        self.circuit = Circuit.CLOSED
        self.trying = False  # a trial is under way; whoever begins one says so
        self._changed = changed
        self._in_a_row = 0
        self._window = 0.0  # when it began
        self._requests = 0
        self._failed = 0
        self._opened = 0.0
        self._unreachable = False

    def succeeded(self, now: float, *, trial: bool = False) -> None:
        self._count(now, failed=0)
        self._in_a_row = 0
        if trial:
            self.trying = False
            self._requests = self._failed = 0
            self._turn(Circuit.CLOSED, "answers again")

    def failed(self, now: float, *, trial: bool = False) -> None:
        self._count(now, failed=1)
        self._in_a_row += 1
        if trial:
            self.trying = False
            self.open(now, "the trial failed")
        elif self._in_a_row >= IN_A_ROW:
            self.open(now, f"{self._in_a_row} failures in a row")
        elif self._requests >= WINDOW_REQUESTS and self._failed >= self._requests * FAILED_SHARE:
            self.open(now, f"{self._failed} of {self._requests} requests failed")

    def open(self, now: float, reason: str, *, unreachable: bool = False) -> None:
        """`unreachable`: because the instance could not be reached, and not for what it has answered."""
        if self.circuit is not Circuit.OPEN:
            self._opened = now
            self._unreachable = unreachable
            self._turn(Circuit.OPEN, reason)

    def rested(self, now: float) -> None:
        """The instance answers `now`. Was it only not reached, it is well; else a request may try it after a while."""
        if self.circuit is not Circuit.OPEN:
            return
        if self._unreachable:
            self._turn(Circuit.CLOSED, "answers again")
        elif now - self._opened >= OPEN_SECONDS:
            self._turn(Circuit.HALF_OPEN, "may be tried")

    def _count(self, now: float, *, failed: int) -> None:
        if now - self._window >= WINDOW_SECONDS:
            self._window = now
            self._requests = self._failed = 0
        self._requests += 1
        self._failed += failed

    def _turn(self, circuit: Circuit, reason: str) -> None:
        self.circuit = circuit
        self._in_a_row = 0
        self._changed(circuit, reason)


class RetryBudget:
    """At most a fifth as many retries as requests in the last ten seconds, and ten where there are fewer than 50.

    Without it every request to a service in trouble would be several.
    """

    def __init__(self) -> None:
        self._second = 0
        self._requests = [0] * _SECONDS
        self._retries = [0] * _SECONDS

    def asked(self, now: float) -> None:
        """Count a request that is sent for the first time."""
        second = int(now)
        if second != self._second:
            self._go_on_to(second)
        self._requests[second % _SECONDS] += 1

    def allows(self, now: float) -> bool:
        """Whether there is one more retry; it counts as made."""
        second = int(now)
        if second != self._second:
            self._go_on_to(second)
        if sum(self._retries) >= max(RETRIES_AT_LEAST, sum(self._requests) * RETRY_SHARE):
            return False
        self._retries[second % _SECONDS] += 1
        return True

    def _go_on_to(self, second: int) -> None:
        for passed in range(max(self._second + 1, second - _SECONDS + 1), second + 1):
            self._requests[passed % _SECONDS] = self._retries[passed % _SECONDS] = 0
        self._second = second
