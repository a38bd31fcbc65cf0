"""Every read against the history of writes: is it as new as was promised to this reader at this time?

Four promises, each a lower bound for the version of a ticket that an answer may show:

- token: whoever sends a consistency token sees everything that was told at or before it, to anybody;
- own write: a writer sees its own writes through the gateway that took them, also without a token;
- two seconds: everybody sees what was acknowledged two seconds before the read began;
- pipeline: while a fault holds back events, the two seconds hold for every write whose gateway could tell Redis. A
  write that only its event makes known (made past the gateways, or by one that is cut off) has until two seconds
  after events flow again. The same goes for search results, which always wait for the event.

A read that fails is a violation unless its own gateway was killed or frozen, or the search service that it is for.
The checker knows nothing of the cache.
"""

import bisect
import enum
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

from tests.chaos.cache_campaign.records import History, Read, Seen, Through, What, Window, Write

PROMISED_SECONDS = 2.0
STALE = "stale"  # how the gateway marks an answer that it gives because its source is away

At = TypeVar("At", float, str)


class Kind(enum.StrEnum):
    """Ways in which a read can be wrong."""

    TOKEN = "older than its token"
    OWN_WRITE = "older than the reader's own write through the same gateway"
    TWO_SECONDS = "older than two seconds"
    ERROR = "failed although only the cache was ill"
    CONTENT = "shows what was never written"
    PIPELINE = "events did not flow again"
    PROCESS = "process that ended by itself"


class Violation(NamedTuple):
    kind: Kind
    detail: str


class Bound(Generic[At]):
    """From which moment (or token) on at least which version must be shown."""

    def __init__(self) -> None:
        self._facts: list[tuple[At, int]] = []
        self._moments: list[At] = []
        self._versions: list[int] = []

    def add(self, at: At, version: int) -> None:
        self._facts.append((at, version))

    def freeze(self) -> None:
        highest = 0
        for at, version in sorted(self._facts):
            if version > highest:
                highest = version
                self._moments.append(at)
                self._versions.append(version)

    def at(self, at: At) -> int:
        """The version that must be shown at `at`; 0 when none."""
        place = bisect.bisect_right(self._moments, at)
        return self._versions[place - 1] if place else 0


class _Ticket:
    """What is known of one ticket."""

    def __init__(self) -> None:
        self.writes: dict[int, Write] = {}
        self.deadline: Bound[float] = Bound()
        self.found: Bound[float] = Bound()  # the same for search: versions that set a title
        self.token: Bound[str] = Bound()
        self.answered: Bound[float] = Bound()
        self.own: defaultdict[tuple[int, Through], Bound[float]] = defaultdict(Bound)
        self.in_order: list[Write] = []

    def freeze(self) -> None:
        self.in_order = [self.writes[version] for version in sorted(self.writes)]
        self.token.freeze()
        for bound in (self.deadline, self.found, self.answered, *self.own.values()):
            bound.freeze()


class Verdict(NamedTuple):
    """`staleness` is by outcome, one number a read: for how long what it did not show had been acknowledged.

    `held_back` are those of reads that were older than two seconds and might be, while a fault held back events.
    """

    violations: list[Violation]
    staleness: Mapping[str, list[float]]
    held_back: list[float]


def check(history: History) -> Verdict:
    tickets = _tickets(history)
    by_organization: defaultdict[str, list[str]] = defaultdict(list)
    for name, ticket in tickets.items():
        by_organization[next(iter(ticket.writes.values())).organization].append(name)
    violations = [Violation(Kind.CONTENT, conflict) for conflict in history.conflicts]
    staleness: defaultdict[str, list[float]] = defaultdict(list)
    held_back: list[float] = []
    for read in history.reads:
        if read.seen is None:
            if not _excused(read, history.windows):
                violations.append(Violation(Kind.ERROR, f"{_shown(read)}: {read.failure}"))
            continue
        if read.outcome == STALE and _excused(read, history.windows):
            continue  # its source was away, and it says so
        names = [read.ticket] if read.ticket else by_organization[read.organization]
        oldest = 0.0
        before = len(violations)
        for name in names:
            if name in tickets:
                violations += _judge(read, read.seen, name, tickets[name])
                oldest = max(oldest, _staleness(read, read.seen, name, tickets[name]))
        staleness[read.outcome].append(oldest)
        if oldest > PROMISED_SECONDS and len(violations) == before:
            held_back.append(oldest)
    return Verdict(violations, staleness, held_back)


def deadline(write: Write, windows: Iterable[Window], *, by_event: bool = False) -> float:
    """When everybody must see `write`. `by_event` when only its event can tell."""
    latest = write.answered + PROMISED_SECONDS
    windows = list(windows)
    by_event = by_event or write.through is None or _cut_off(write, windows)
    for window in windows:
        held = window.holds_events and write.started <= window.end and write.answered >= window.start - PROMISED_SECONDS
        if by_event and held:
            latest = max(latest, window.end + PROMISED_SECONDS)
    return latest


def _cut_off(write: Write, windows: Iterable[Window]) -> bool:
    return any(
        write.through is not None
        and write.through.gateway in window.cut_off
        and write.started <= window.mended
        and write.answered >= window.start
        for window in windows
    )


def _tickets(history: History) -> dict[str, _Ticket]:
    tickets: dict[str, _Ticket] = defaultdict(_Ticket)
    for write in history.writes:
        ticket = tickets[write.ticket]
        ticket.writes[write.version] = write
        ticket.deadline.add(deadline(write, history.windows), write.version)
        if write.title is not None:
            ticket.found.add(deadline(write, history.windows, by_event=True), write.version)
        ticket.token.add(write.token, write.version)
        ticket.answered.add(write.answered, write.version)
        if write.through is not None:
            ticket.own[write.client, write.through].add(write.answered, write.version)
    for read in history.reads:
        # What an answer showed stood at the position that it told, so whoever comes with that position sees it too.
        if read.token is not None and read.seen is not None:
            for name, version in read.seen.versions.items():
                if name in tickets:
                    tickets[name].token.add(read.token, version)
    for ticket in tickets.values():
        ticket.freeze()
    return dict(tickets)


def _judge(read: Read, seen: Seen, name: str, ticket: _Ticket) -> Iterator[Violation]:
    if read.what is What.SEARCH:
        required = {Kind.TWO_SECONDS: ticket.found.at(read.started)}
    else:
        own = ticket.own.get((read.client, read.through))
        required = {
            Kind.TOKEN: ticket.token.at(read.need) if read.need is not None else 0,
            Kind.OWN_WRITE: own.at(read.started) if own is not None else 0,
            Kind.TWO_SECONDS: ticket.deadline.at(read.started),
        }
    for kind, version in required.items():
        missing = version and _missing(read, seen, name, ticket, version)
        if missing:
            late = read.started - missing.answered
            yield Violation(
                kind,
                f"{_shown(read)} lacks version {missing.version} of {name}, acknowledged {late:.3f} s before"
                f" ({'directly' if missing.through is None else f'gateway {missing.through.gateway}'},"
                f" client {missing.client}, token {missing.token}); shown {seen.versions.get(name)},"
                f" needed {read.need}, told {read.token}",
            )
    known = ticket.writes.get(seen.versions.get(name, 0))
    title = seen.titles.get(name)
    if known is not None and known.title is not None and title is not None and known.title != title:
        yield Violation(Kind.CONTENT, f"{_shown(read)} shows {title!r} for version {known.version} of {name}")


def _missing(read: Read, seen: Seen, name: str, ticket: _Ticket, version: int) -> Write | None:
    """The oldest acknowledged write up to `version` that the answer does not show."""
    if seen.versions.get(name, 0) >= version:
        return None
    for write in ticket.in_order:
        if write.version > version:
            return None
        if not _shows(read, seen, name, write):
            return write
    return None


def _shows(read: Read, seen: Seen, name: str, write: Write) -> bool:
    match read.what:
        case What.TICKET:
            return seen.versions.get(name, 0) >= write.version
        case What.COMMENTS:
            return write.comment is None or write.comment in seen.comments
        case What.SEARCH:
            return write.title is None or _revision(seen.titles.get(name)) >= write.version
        case What.NEWEST:
            return _listed(seen, name, write.version, write.number)
        case What.UPDATED:
            return _listed(seen, name, write.version, write.updated_at)


def _listed(seen: Seen, name: str, version: int, order: float) -> bool:
    """On the page at `version` or later, or rightly beyond its end."""
    if name in seen.versions:
        return seen.versions[name] >= version
    return seen.last is not None and order <= seen.last


def _staleness(read: Read, seen: Seen, name: str, ticket: _Ticket) -> float:
    known = ticket.answered.at(read.started)
    missing = _missing(read, seen, name, ticket, known) if known else None
    return max(0.0, read.started - missing.answered) if missing else 0.0


def title_of(name: str, version: int) -> str:
    """A title that says which version it was written by."""
    return f"{name} revision {version}"


def _revision(title: str | None) -> int:
    return int(title.rpartition(" ")[2]) if title else 0


def _excused(read: Read, windows: Iterable[Window]) -> bool:
    return any(
        read.started <= window.mended
        and read.ended >= window.start
        and (read.through.gateway in window.unreachable or (window.searchless and read.what is What.SEARCH))
        for window in windows
    )


def _shown(read: Read) -> str:
    return (
        f"{read.what} by client {read.client} from gateway {read.through.gateway} ({read.outcome}"
        f"{', 304' if read.revalidated else ''}) at {read.started:.3f}"
    )
