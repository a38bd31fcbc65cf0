"""The two consumer groups of the ticket topic.

`search-index` applies events to the index and then invalidates cached search results; `search-invalidate`
invalidates cached tickets and lists at once, whatever the state of the index.
"""

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence

from libs.common.cache.search_tags import Change, indexed
from libs.common.cache.tags import Tags
from libs.common.cache.ticket_tags import CREATED, written
from libs.common.consistency import Position
from libs.common.events import EventTypes, TicketEvent
from libs.common.kafka import EventsRejected
from services.search.documents import Documents, Handler, on_ticket_changed, on_ticket_commented

INDEX_GROUP = "search-index"
INVALIDATE_GROUP = "search-invalidate"

TagsOf = Callable[[TicketEvent], Sequence[str]]


class IndexConsumer:
    """Safe to repeat: also events that the index has already are told to the cache, for that may have failed.

    What they had changed cannot be told any more, so they make every search of their organization old.
    """

    def __init__(self, documents: Documents, tags: Tags) -> None:
        self._documents = documents
        self._tags = tags

    async def apply(self, events: Sequence[TicketEvent]) -> None:
        _require_known(events, INDEX_HANDLERS)
        applied = await self._documents.apply(events, INDEX_HANDLERS)
        changes: dict[uuid.UUID, list[Change]] = {}
        for change in applied.changes:
            changes.setdefault(change.organization_id, []).append(change)
        for organization_id, position in highest_positions(events).items():
            of_organization = changes.get(organization_id, ())
            made_old = indexed(organization_id, of_organization, untold=organization_id in applied.untold)
            await self._tags.bump(made_old.tags, position, parts=made_old.parts)


class InvalidateConsumer:
    """Waits for nothing but the cache's Redis."""

    def __init__(self, tags: Tags) -> None:
        self._tags = tags

    async def apply(self, events: Sequence[TicketEvent]) -> None:
        _require_known(events, INVALIDATE_HANDLERS)
        await _bump(self._tags, events, lambda event: INVALIDATE_HANDLERS[event.type](event))


def on_ticket_created(event: TicketEvent) -> Sequence[str]:
    return written(event.organization_id, [event.data.ticket.id], [CREATED])


def on_ticket_written(event: TicketEvent) -> Sequence[str]:
    return written(event.organization_id, [event.data.ticket.id], event.data.changed)


def by_organization(events: Sequence[TicketEvent], tags_of: TagsOf) -> list[tuple[list[str], Position]]:
    """The tags of each organization's events with the highest of their positions.

    What belongs together is bumped together: see `libs.common.cache.loads.Question`.
    """
    tags: dict[uuid.UUID, dict[str, None]] = {}
    for event in events:
        tags.setdefault(event.organization_id, {}).update(dict.fromkeys(tags_of(event)))
    return [(list(tags[organization_id]), position) for organization_id, position in highest_positions(events).items()]


def highest_positions(events: Iterable[TicketEvent]) -> dict[uuid.UUID, Position]:
    """By organization."""
    highest: dict[uuid.UUID, Position] = {}
    for event in events:
        highest[event.organization_id] = max(event.position, highest.get(event.organization_id, event.position))
    return highest


async def _bump(tags: Tags, events: Sequence[TicketEvent], tags_of: TagsOf) -> None:
    for bumped, position in by_organization(events, tags_of):
        await tags.bump(bumped, position)


def _require_known(events: Iterable[TicketEvent], handlers: Mapping[str, object]) -> None:
    unknown = [(event, f"nothing handles the type {event.type}") for event in events if event.type not in handlers]
    if unknown:
        raise EventsRejected(*unknown)


INDEX_HANDLERS: Mapping[str, Handler] = {
    EventTypes.CREATED.name: on_ticket_changed,
    EventTypes.UPDATED.name: on_ticket_changed,
    EventTypes.STATUS_CHANGED.name: on_ticket_changed,
    EventTypes.ASSIGNED.name: on_ticket_changed,
    EventTypes.COMMENTED.name: on_ticket_commented,
}

INVALIDATE_HANDLERS: Mapping[str, TagsOf] = {
    EventTypes.CREATED.name: on_ticket_created,
    EventTypes.UPDATED.name: on_ticket_written,
    EventTypes.STATUS_CHANGED.name: on_ticket_written,
    EventTypes.ASSIGNED.name: on_ticket_written,
    EventTypes.COMMENTED.name: on_ticket_written,
}
