"""Wire models of what administrators see of the cache and clear by hand."""

import enum
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

_END = r"$(?!\n)"
_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
Tag = Annotated[str, Meta(pattern=f"^(tickets|search|ticket:{_UUID}){_END}")]
Prefix = Annotated[str, Meta(min_length=5, max_length=2000, pattern=f"^/api/[!-~]*{_END}")]


class Clearing(enum.StrEnum):
    ORGANIZATION = "organization"
    TAG = "tag"
    PREFIX = "prefix"


class ClearCache(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to clear, at most one of them; without any it is everything of the organization.

    `tag`: `tickets` are lists of tickets, `search` results of searches, `ticket:ID` a ticket with its comments and its
    history. `prefix`: answers whose path and query, as the hottest keys show them, begin so.
    """

    tag: Tag | UnsetType = UNSET
    prefix: Prefix | UnsetType = UNSET


class CacheCleared(msgspec.Struct, frozen=True):
    """What was cleared, and the tag or the prefix.

    `removed` is how many entries a prefix removed from the shared cache; nobody counts what a tag makes invalid.
    """

    cleared: Clearing
    value: str | None
    removed: int | None


class KeyTypeFigures(msgspec.Struct, frozen=True):
    """Reads of one type since the process started; `hit_rate` is the share (0 to 1) that a level answered."""

    key_type: str
    l1_hits: int
    l2_hits: int
    misses: int
    hit_rate: float | None


class LocalFigures(msgspec.Struct, frozen=True):
    """The process's own memory (L1). While it is not `listening` to invalidations it holds nothing."""

    entries: int
    limit: int
    listening: bool


class SharedFigures(msgspec.Struct, frozen=True):
    """The Redis that all processes share (L2): all its keys, memory in bytes, keys evicted since it started."""

    keys: int
    used_bytes: int
    limit_bytes: int | None
    evicted: int


class HotKey(msgspec.Struct, frozen=True):
    """A path and query of the organization, for a role, and how often L1 gave the answer since it holds it."""

    path: str
    role: str
    hits: int


class CacheFigures(msgspec.Struct, frozen=True):
    """The cache as the gateway process `process` sees it. `l2` is null when the shared cache does not answer.

    Counts are of all organizations together; `hottest` are at most 20 keys of the caller's own.
    """

    process: int
    l1: LocalFigures
    l2: SharedFigures | None
    loads_under_way: int
    reads: list[KeyTypeFigures]
    hit_rate: float | None
    hottest: list[HotKey]
