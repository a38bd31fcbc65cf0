"""Bugs that a cache may have, planted into a gateway from outside so that the checker can be seen to find them.

Each function changes the product's classes in this process. A name that is not there any more is an error.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from libs.common.cache.local import Entry, LocalCache
from libs.common.cache.store import Begun, Found, Store
from libs.common.cache.tags import TagValue
from libs.common.consistency import Position
from services.gateway.answers.reads import CachedReads

LATE_SECONDS = 0.3


def tag_check_off() -> None:
    """An entry is taken from L2 whatever has become of its tags."""

    def believe(self: Found, need: Position | None) -> bool:
        return self.entry is not None and self.entry.satisfies(need)

    _replace(Found, "is_valid", believe)


def stamps_after_load() -> None:
    """The stamps of an entry are those after its load: a write during the load goes unnoticed."""
    finish = Store.finish

    async def read_stamps_and_finish(
        self: Store, key: str, tags: Sequence[str], begun: Begun, entry: Entry, **more: Any
    ) -> None:
        if entry.parts:
            return await finish(self, key, tags, begun, entry, **more)
        values = [value for value in (await self.look_up(key, tags)).values if value is not None]
        entry = msgspec.structs.replace(entry, stamps=tuple(value.stamp for value in values))
        return await finish(self, key, tags, begun._replace(values=values), entry, **more)

    _replace(Store, "finish", read_stamps_and_finish)


def parts_after_load() -> None:
    """The stamps of a list's tickets are those after its load, whatever was written to them meanwhile."""
    open_parts = Store.open_parts

    async def open_unwatched(
        self: Store, parts: Sequence[str], _watched: Mapping[str, TagValue], as_of: Position | None
    ) -> list[str] | None:
        return await open_parts(self, parts, {}, as_of)

    _replace(Store, "open_parts", open_unwatched)


def keep_l1() -> None:
    """L1 is kept when the invalidation connection is lost, and given out as if nothing had been missed."""
    began = vars(LocalCache)["listening"].fset

    def listening(self: LocalCache) -> bool:
        return self._listening

    def listen_once(self: LocalCache, listening: bool) -> None:  # noqa: FBT001
        if listening and not self._listening:
            began(self, True)

    _replace(LocalCache, "listening", property(listening, listen_once))


def late_bump() -> None:
    """The writer is answered before the bump is made."""
    wrote = CachedReads.wrote
    late: set[asyncio.Task[None]] = set()

    async def wrote_later(self: CachedReads, *arguments: Any) -> None:
        async def bump() -> None:
            await asyncio.sleep(LATE_SECONDS)
            await wrote(self, *arguments)

        task = asyncio.create_task(bump())
        late.add(task)
        task.add_done_callback(late.discard)

    _replace(CachedReads, "wrote", wrote_later)


def _replace(owner: type, name: str, function: Any) -> None:
    getattr(owner, name)  # an error when it is not there any more: the plant would do nothing
    setattr(owner, name, function)


PLANTS: dict[str, Callable[[], None]] = {
    "tag-check-off": tag_check_off,
    "stamps-after-load": stamps_after_load,
    "parts-after-load": parts_after_load,
    "keep-l1": keep_l1,
    "late-bump": late_bump,
}
