"""What a campaign against the cache writes down: every write, every read, every fault, with the client's clock.

Times are seconds of the monotonic clock of the one process that all clients live in.
"""

import dataclasses
import enum
from collections.abc import Mapping
from typing import NamedTuple


class What(enum.StrEnum):
    """What was read."""

    TICKET = "ticket"
    COMMENTS = "comments"
    NEWEST = "newest"  # the list in the order of creation
    UPDATED = "updated"  # the list in the order of the last change
    SEARCH = "search"


class Through(NamedTuple):
    """A gateway's process: its number, and how often it had been started before."""

    gateway: int
    life: int


@dataclasses.dataclass(frozen=True, slots=True)
class Write:
    """An acknowledged write: `version` is the ticket's version that it made, `token` what its answer told.

    `through` is None for a write straight to the tickets service, which no gateway hears of but by its event.
    `title` is None unless it set one, `comment` unless it added one.
    """

    client: int
    through: Through | None
    organization: str
    ticket: str
    number: int
    version: int
    title: str | None
    comment: str | None
    updated_at: float
    token: str
    started: float
    answered: float


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What an answer shows: the versions of tickets, the bodies of comments, or the titles found.

    `last` is what the last row of a full page is ordered by (a number, or when it was updated); None when the page
    has room, so that whatever is missing on it is missing altogether.
    """

    versions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    comments: frozenset[str] = frozenset()
    last: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Read:
    """An answered read. `seen` is None for one that failed, and `failure` says how.

    A 304 has seen what the reader had got with the ETag before. `ticket` is empty for lists.
    """

    client: int
    through: Through
    what: What
    organization: str
    ticket: str
    need: str | None
    started: float
    ended: float
    outcome: str
    token: str | None
    seen: Seen | None
    failure: str | None = None
    revalidated: bool = False


@dataclasses.dataclass
class Window:
    """A fault from its beginning to the time when everything was as before.

    Until `mended` the gateways `unreachable` (by number) could not answer, those `cut_off` could not reach their Redis,
    and when `searchless` nobody answered searches. `holds_events` when nobody heard of an event until the end.
    """

    name: str
    start: float
    mended: float = 0.0
    end: float = 0.0
    unreachable: frozenset[int] = frozenset()
    cut_off: frozenset[int] = frozenset()
    holds_events: bool = False
    searchless: bool = False
    shown: str = ""


@dataclasses.dataclass
class History:
    """Everything that was recorded. `conflicts` are answers that no promise allows, found while they came."""

    writes: list[Write] = dataclasses.field(default_factory=list)
    reads: list[Read] = dataclasses.field(default_factory=list)
    windows: list[Window] = dataclasses.field(default_factory=list)
    conflicts: list[str] = dataclasses.field(default_factory=list)
    unanswered_writes: int = 0
