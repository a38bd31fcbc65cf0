"""L1: a bounded LRU in the process, emptied whenever it can no longer be told of invalidations."""

import functools
import heapq
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import msgspec

from libs.common.consistency import Position


class Entry(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """A cached answer, stored as it is written to the client: its body and the headers that belong to it.

    It includes everything that had been told to anybody before `as_of`; nothing in it is newer than `consistency`.
    Both are None for an answer whose source knows no positions. `made_at` is in seconds since 1970. `parts` are the
    tags that its load has found; `stamps` are those of the tags that were asked for, then those of the parts.
    """

    body: bytes
    headers: dict[str, str]
    as_of: Position | None
    consistency: Position | None
    stamps: tuple[str, ...]
    status: int = 200
    made_at: float = 0.0
    parts: tuple[str, ...] = ()

    @functools.cached_property
    def forms(self) -> dict[str, bytes]:
        """What its readers have made of it: encodings, whole answers. Kept in this process, as long as the entry."""
        return {}

    def satisfies(self, need: Position | None) -> bool:
        return need is None or (self.as_of is not None and self.as_of >= need)


class _Kept:
    """An entry, until when (`time.monotonic`), its tags, and how often it was given."""

    __slots__ = ("entry", "hits", "tags", "until")

    def __init__(self, entry: Entry, until: float, tags: frozenset[str]) -> None:
        self.entry = entry
        self.until = until
        self.tags = tags
        self.hits = 0


class LocalCache:
    """An LRU of at most `items` entries that live at most `seconds`, indexed by tag.

    While it is not `listening` to invalidations it neither gives nor keeps anything, and whenever it begins or stops
    to listen it is emptied: what it missed in between is unknown.
    """

    def __init__(self, *, items: int, seconds: float) -> None:
        self.items = items
        self._seconds = seconds
        self._entries: OrderedDict[str, _Kept] = OrderedDict()
        self._keys_by_tag: dict[str, set[str]] = {}
        self._listening = False

    @property
    def listening(self) -> bool:
        return self._listening

    @listening.setter
    def listening(self, listening: bool) -> None:
        self._listening = listening
        self._entries.clear()
        self._keys_by_tag.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        found = self._entries.get(key)
        if found is None:
            return None
        if found.until < time.monotonic():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        found.hits += 1
        return found.entry

    def put(self, key: str, entry: Entry, tags: Sequence[str], *, seconds: float | None = None) -> None:
        """Keep an entry for the cache's seconds, or for fewer."""
        if not self._listening:
            return
        self._drop(key)
        lives = self._seconds if seconds is None else min(seconds, self._seconds)
        self._entries[key] = _Kept(entry, time.monotonic() + lives, frozenset(tags))
        for tag in tags:
            self._keys_by_tag.setdefault(tag, set()).add(key)
        while len(self._entries) > self.items:
            self._drop(next(iter(self._entries)))

    def invalidate(self, tags: Iterable[str]) -> None:
        for tag in tags:
            for key in tuple(self._keys_by_tag.get(tag, ())):
                self._drop(key)

    def remove(self, beginnings: tuple[str, ...]) -> None:
        """Remove the entries whose keys begin like one of `beginnings`."""
        for key in tuple(self._entries):
            if key.startswith(beginnings):
                self._drop(key)

    def hottest(self, beginning: str, count: int) -> list[tuple[str, int]]:
        """The keys that begin like this and were given most often since they were put, with how often that was."""
        given = ((key, kept.hits) for key, kept in self._entries.items() if key.startswith(beginning))
        return heapq.nlargest(count, given, key=lambda one: one[1])

    def _drop(self, key: str) -> None:
        found = self._entries.pop(key, None)
        if found is None:
            return
        for tag in found.tags:
            keys = self._keys_by_tag[tag]
            keys.discard(key)
            if not keys:
                del self._keys_by_tag[tag]
