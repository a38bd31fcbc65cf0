"""A load: what is asked for, what it brings, and how others wait for it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec

from libs.common.cache.local import Entry
from libs.common.consistency import Position, Requirement

JOINED_SECONDS = 1.0


class Loaded(msgspec.Struct, frozen=True):
    """A load's answer; see `Entry` for the two positions. A `status` of 404 says that there is nothing.

    `parts` are the tags of what was found, such as a list's tickets, where the question says what is `watched`.
    """

    body: bytes
    headers: dict[str, str]
    as_of: Position | None
    consistency: Position | None
    status: int = 200
    parts: tuple[str, ...] = ()


class Lives(NamedTuple):
    """How long an entry may be given, in seconds.

    `valid`: while nothing has made it old. `missing`: when it says that there is nothing. `stale`: after it was made,
    though it may be old, while its source is away.
    """

    valid: int
    missing: int = 5
    stale: int = 0


Load = Callable[[Requirement], Awaitable[Loaded]]


class Question(NamedTuple):
    """What a reader asks of the cache besides the key.

    A bump of one of `tags` makes an entry old. One of a `watched` tag does not; it only overtakes a load under way.
    Whoever bumps a part that a load may find bumps a watched tag in the same call.
    """

    tags: Sequence[str]
    watched: Sequence[str]
    lives: Lives
    load: Load
    is_away: Callable[[Exception], bool]

    @property
    def heeded(self) -> Sequence[str]:
        """The tags that are read before a load: what it must include."""
        return [*self.tags, *self.watched]

    def seconds(self, entry: Entry) -> int:
        """How long an entry may be kept."""
        return self.lives.valid if entry.status == 200 else self.lives.missing

    def may_be_stale(self, entry: Entry, need: Position | None) -> bool:
        """Whether an entry may be given though it may be old."""
        return entry.status == 200 and entry.satisfies(need) and time.time() - entry.made_at < self.lives.stale


class Flight:
    """A load under way. Once `overtaken`, its answer may be old: nobody joins it and L1 does not keep it."""

    def __init__(self, key: str, tags: Sequence[str], need: Position | None) -> None:
        """`tags`: those whose bumps overtake it."""
        self.key = key
        self.tags = frozenset(tags)
        self.need = need
        self.overtaken = False
        self.task: asyncio.Task[tuple[Entry, str]]
        self._began = time.monotonic()

    def will_do(self, need: Position | None) -> bool:
        """Whether a reader may wait for it.

        Not when it has lasted for a second: a process that cannot listen is not told that the load was overtaken.
        """
        lasted = time.monotonic() - self._began
        return not self.overtaken and not exceeds(need, self.need) and lasted < JOINED_SECONDS


def exceeds(need: Position | None, offered: Position | None) -> bool:
    """Whether a reader needs more than a load must include."""
    return need is not None and (offered is None or need > offered)
