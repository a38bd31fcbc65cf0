"""L1: a bounded LRU in the process, emptied whenever it can no longer be told of invalidations."""

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import msgspec

from libs.common.consistency import Position


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A cached answer, stored as it is written to the client: its body and the headers that belong to it.

    It includes everything that had been told to anybody before `as_of`; nothing in it is newer than `consistency`.
    Both are None for an answer whose source knows no positions.
    """

    body: bytes
    headers: dict[str, str]
    as_of: Position | None
    consistency: Position | None
    stamps: tuple[str, ...]

    def satisfies(self, need: Position | None) -> bool:
        return need is None or (self.as_of is not None and self.as_of >= need)


class LocalCache:
    """An LRU of at most `items` entries that live at most `seconds`, indexed by tag.

    While it is not `listening` to invalidations it neither gives nor keeps anything, and whenever it begins or stops
    to listen it is emptied: what it missed in between is unknown.
    """

    def __init__(self, *, items: int, seconds: float) -> None:
        self._items = items
        self._seconds = seconds
        self._entries: OrderedDict[str, tuple[float, Entry, frozenset[str]]] = OrderedDict()
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
        if found[0] < time.monotonic():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return found[1]

    def put(self, key: str, entry: Entry, tags: Sequence[str]) -> None:
        if not self._listening:
            return
        self._drop(key)
        self._entries[key] = (time.monotonic() + self._seconds, entry, frozenset(tags))
        for tag in tags:
            self._keys_by_tag.setdefault(tag, set()).add(key)
        while len(self._entries) > self._items:
            self._drop(next(iter(self._entries)))

    def invalidate(self, tags: Iterable[str]) -> None:
        for tag in tags:
            for key in tuple(self._keys_by_tag.get(tag, ())):
                self._drop(key)

    def _drop(self, key: str) -> None:
        found = self._entries.pop(key, None)
        if found is None:
            return
        for tag in found[2]:
            keys = self._keys_by_tag[tag]
            keys.discard(key)
            if not keys:
                del self._keys_by_tag[tag]
