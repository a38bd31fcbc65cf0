"""What a campaign proves: the writers' records, the database and the topic are held against one another.

Pure: it is given all three and returns the violations. Its own test forges one violation of each kind.
"""

import collections
import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Kind(enum.StrEnum):
    """What may have gone wrong."""

    LOST = "acknowledged write or recorded event that is not in Kafka"
    GHOST = "event in Kafka that was never committed, or with another payload"
    ORDER = "version that appears for the first time out of its turn"
    PARTITION = "ticket with events in more than one partition"
    LOST_UPDATE = "update that was overwritten, forked or made though it was refused"
    DUPLICATE = "one request, two effects or two answers"
    ANSWER = "answer that may not come"
    PROCESS = "process that ended by itself"


class Violation(NamedTuple):
    kind: Kind
    detail: str


class Event(NamedTuple):
    """An event as it was written, or as it stands in Kafka; `digest` is the SHA-256 of its value."""

    ticket: str
    version: int
    event_id: str
    type: str
    digest: bytes


class Delivery(NamedTuple):
    """A message of the topic, in the order of its partition."""

    event: Event
    partition: int


@dataclasses.dataclass
class Creation:
    """A creating request with an Idempotency-Key, and every answer that any of its callers got.

    `effects` are the titles or comment bodies that it was to bring into the world, each unique in the campaign.
    """

    key: str
    effects: Sequence[str]
    answers: list[bytes] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Update:
    """A PATCH that set `title`, unique in the campaign, on a ticket at `expected`.

    `outcome` is `applied` (200), `refused` (412 and no doubt about it) or `unknown` (an answer was lost on the way).
    """

    ticket: str
    expected: int
    title: str
    outcome: str = "unknown"


class Line(NamedTuple):
    """A line of a ticket's history: `changes` maps fields to [old, new]."""

    ticket: str
    version: int
    event_id: str
    type: str
    changes: Mapping[str, Any]


@dataclasses.dataclass
class Evidence:
    """Everything there is after the campaign has come to rest.

    `first_titles` and `titles` are the tickets' titles at creation and now, `comments` the bodies of all comments,
    `versions` the tickets' versions now.
    """

    creations: Sequence[Creation]
    updates: Sequence[Update]
    written: Sequence[Event]
    history: Sequence[Line]
    delivered: Sequence[Delivery]
    first_titles: Mapping[str, str]
    titles: Mapping[str, str]
    versions: Mapping[str, int]
    comments: Sequence[str]


def check(evidence: Evidence) -> list[Violation]:
    return [
        *_lost(evidence),
        *_ghosts(evidence),
        *_out_of_order(evidence.delivered),
        *_spread(evidence.delivered),
        *_lost_updates(evidence),
        *_duplicates(evidence),
    ]


def _lost(evidence: Evidence) -> Iterator[Violation]:
    delivered = {delivery.event[:2] for delivery in evidence.delivered}
    for line in evidence.history:
        if (line.ticket, line.version) not in delivered:
            yield Violation(Kind.LOST, f"version {line.version} of {line.ticket} is not in Kafka")
    for ticket, version in evidence.versions.items():
        if (ticket, version) not in delivered:
            yield Violation(Kind.LOST, f"the newest version {version} of {ticket} is not in Kafka")
    there = _effects(evidence)
    for creation in evidence.creations:
        for effect in creation.effects if creation.answers else ():
            if not there[effect]:
                yield Violation(Kind.LOST, f"{creation.key} was answered, {effect!r} is not in the database")
    lines = {line[:2] for line in evidence.history}
    for update in evidence.updates:
        if update.outcome == "applied" and (update.ticket, update.expected + 1) not in lines:
            yield Violation(Kind.LOST, f"{update.title!r} was acknowledged and has no line of history")


def _ghosts(evidence: Evidence) -> Iterator[Violation]:
    written = set(evidence.written)
    recorded = {(line.ticket, line.version, line.event_id, line.type) for line in evidence.history}
    for delivery in evidence.delivered:
        event = delivery.event
        if event not in written:
            yield Violation(Kind.GHOST, f"{event} was never written so")
        elif event[:4] not in recorded:
            yield Violation(Kind.GHOST, f"{event} is not in the history")


def _out_of_order(delivered: Iterable[Delivery]) -> Iterator[Violation]:
    newest: dict[str, int] = {}
    for (ticket, version, *_rest), _partition in delivered:
        last = newest.get(ticket, 0)
        if version > last + 1:
            yield Violation(Kind.ORDER, f"version {version} of {ticket} comes after {last}")
        newest[ticket] = max(last, version)


def _spread(delivered: Iterable[Delivery]) -> Iterator[Violation]:
    partitions: dict[str, set[int]] = collections.defaultdict(set)
    for event, partition in delivered:
        partitions[event.ticket].add(partition)
    for ticket, found in partitions.items():
        if len(found) > 1:
            yield Violation(Kind.PARTITION, f"{ticket} is in the partitions {sorted(found)}")


def _lost_updates(evidence: Evidence) -> Iterator[Violation]:
    made: dict[str, list[Line]] = collections.defaultdict(list)
    chains: dict[str, list[Line]] = collections.defaultdict(list)
    for line in evidence.history:
        chains[line.ticket].append(line)
        if "title" in line.changes:
            made[line.changes["title"][1]].append(line)
    for update in evidence.updates:
        lines = made[update.title]
        if update.outcome == "applied" and len(lines) != 1:
            yield Violation(Kind.LOST_UPDATE, f"{update.title!r} was acknowledged and made {len(lines)} times")
        if update.outcome == "refused" and lines:
            yield Violation(Kind.LOST_UPDATE, f"{update.title!r} was refused and made all the same")
        if update.outcome == "unknown" and len(lines) > 1:
            yield Violation(Kind.LOST_UPDATE, f"{update.title!r} was made {len(lines)} times")
        for line in lines:
            if (line.ticket, line.version) != (update.ticket, update.expected + 1):
                yield Violation(Kind.LOST_UPDATE, f"{update.title!r} was made on another version than it named")
    for ticket, first in evidence.first_titles.items():
        yield from _forks(ticket, first, sorted(chains[ticket], key=lambda line: line.version), evidence)


def _forks(ticket: str, title: str, lines: Sequence[Line], evidence: Evidence) -> Iterator[Violation]:
    """A ticket's history is one chain: versions 1, 2, 3 …, every title taking the place of the one before."""
    for turn, line in enumerate(lines, start=1):
        if line.version != turn:
            yield Violation(Kind.LOST_UPDATE, f"the history of {ticket} has {line.version} in the place of {turn}")
            return
        if "title" in line.changes:
            old, new = line.changes["title"]
            if old != title:
                yield Violation(Kind.LOST_UPDATE, f"version {turn} of {ticket} replaced {old!r}, not {title!r}")
            title = new
    if (title, len(lines)) != (evidence.titles[ticket], evidence.versions[ticket]):
        yield Violation(Kind.LOST_UPDATE, f"{ticket} is not what its history makes of it")


def _duplicates(evidence: Evidence) -> Iterator[Violation]:
    there = _effects(evidence)
    for creation in evidence.creations:
        if len(set(creation.answers)) > 1:
            yield Violation(Kind.DUPLICATE, f"{creation.key} was answered in {len(set(creation.answers))} ways")
        for effect in creation.effects:
            if there[effect] > 1:
                yield Violation(Kind.DUPLICATE, f"{effect!r} of {creation.key} is there {there[effect]} times")
    events = collections.Counter((event.ticket, event.version) for event in evidence.written)
    for (ticket, version), count in events.items():
        if count > 1:
            yield Violation(Kind.DUPLICATE, f"version {version} of {ticket} was written {count} times")


def _effects(evidence: Evidence) -> collections.Counter[str]:
    """How often each title was created and each comment made."""
    return collections.Counter(evidence.first_titles.values()) + collections.Counter(evidence.comments)
