"""The generic cell rate algorithm, as one process keeps it.

A bucket knows one time: when everything that was taken will have been paid for at its rate (the theoretical arrival
time). Until then is its debt, and a request that would make the debt longer than the burst allows is refused. It is
the token bucket with one number and no timer (ITU-T I.371, annex A; RFC 2697 has the bucket).
"""

import math
import re
from typing import Final

import msgspec

MOST_PER_MINUTE: Final = 100_000_000
MOST_BURST: Final = 10_000_000
# The part of a burst that a process may give away before it has told the others.
SHARE: Final = 10
_TOLD_STEPS: Final = 1000
_ROUNDING: Final = 1e-9  # what adding times as floats may be off
_RATE = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,7})")


class Rate(msgspec.Struct, frozen=True):
    """So many requests a minute, and so many at once when none came for a while. 0 a minute: no limit."""

    per_minute: int
    burst: int

    def __str__(self) -> str:
        return f"{self.per_minute}/{self.burst}" if self.per_minute else "0"


NO_LIMIT: Final = Rate(0, 0)


def parse_rate(text: str) -> Rate:
    """`6000/1000` is 6,000 a minute and 1,000 at once; `0` is no limit.

    Raises:
        ValueError: for another text, or for more than 100,000,000 a minute or 10,000,000 at once.
    """
    if text == "0":
        return NO_LIMIT
    found = _RATE.fullmatch(text)
    if found is None or int(found[1]) > MOST_PER_MINUTE or int(found[2]) > MOST_BURST:
        raise ValueError("expected 0, or requests a minute and requests at once, like 6000/1000")
    return Rate(int(found[1]), int(found[2]))


class Told:
    """What a client is told of its limit, in both forms in which an answer may want it.

    `headers` are shared by many answers: copy them, do not change them. `lines` are the same as they stand in the head
    of an answer, each with CR LF at its end.
    """

    __slots__ = ("headers", "lines", "remaining")

    def __init__(self, remaining: int, headers: dict[str, str]) -> None:
        self.remaining = remaining
        self.headers = headers
        self.lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()


class Policy:
    """A limit that many clients have, each for itself. Times are in seconds."""

    def __init__(self, name: str, rate: Rate) -> None:
        self.name = name
        self.rate = rate
        self.limited = rate.per_minute > 0
        self.burst = rate.burst
        self.seconds_each = 60 / rate.per_minute if self.limited else 0.0
        self.longest_debt = self.burst * self.seconds_each + _ROUNDING
        self.may_hide = (self.burst // SHARE) * self.seconds_each + _ROUNDING
        self.advertised = f'"{name}";q={self.burst};w={self._whole(self.burst)}'
        self._step = -(-self.burst // _TOLD_STEPS) or 1
        self._told: dict[int, Told] = {}

    def told(self, remaining: int) -> Told:
        """The text for so many requests that remain, made once; of a large burst rounded down by a thousandth."""
        step = remaining // self._step
        told = self._told.get(step)
        if told is None:
            remaining = step * self._step
            value = f'"{self.name}";r={remaining};t={self._whole(self.burst - remaining)}'
            headers = {"RateLimit-Policy": self.advertised, "RateLimit": value}
            told = self._told[step] = Told(remaining, headers)
        return told

    def _whole(self, requests: int) -> int:
        """The seconds in which so many requests are paid for, rounded up."""
        return math.ceil(requests * self.seconds_each - _ROUNDING)


class Bucket:
    """One client's account under a policy.

    `paid_at` is the theoretical arrival time. `unshared` is what was taken here, in seconds of debt, that other
    processes have not been told of; `may_hide` is how long that may grow before it is shared. The first request always
    may.
    """

    __slots__ = ("dirty", "key", "longest_debt", "may_hide", "paid_at", "policy", "seconds_each", "unshared")

    def __init__(self, policy: Policy, key: str) -> None:
        self.policy = policy
        self.key = key
        self.seconds_each = policy.seconds_each
        self.longest_debt = policy.longest_debt
        self.may_hide = policy.may_hide
        self.paid_at = 0.0
        self.unshared = 0.0
        self.dirty = False

    def seconds_until(self, cost: float, now: float) -> float:
        """How long until `cost`, at most a burst, can be taken; 0 if it can be now."""
        return max(0.0, max(0.0, self.paid_at - now) + cost * self.seconds_each - self.longest_debt)

    def take(self, cost: float, now: float) -> None:
        """Add to the debt (with a negative cost: give back). Whether it may be taken is not asked here."""
        seconds = cost * self.seconds_each
        self.paid_at = max(self.paid_at, now) + seconds
        self.unshared += seconds

    def remaining(self, now: float) -> int:
        """How many single requests could be taken now."""
        debt = max(0.0, self.paid_at - now)
        return max(0, int((self.longest_debt - debt) / self.seconds_each))
