"""The two consumer groups of the ticket topic.

`search-index` applies events to the index and then invalidates cached search results; `search-invalidate`
invalidates cached tickets and lists at once, whatever the state of the index.
"""

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence

from libs.common.cache.tags import Tags
from libs.common.cache.ticket_tags import CREATED, search_tag, written
from libs.common.consistency import Position
from libs.common.events import EventTypes, TicketEvent
from libs.common.kafka import EventsRejected
from services.search.documents import Documents, Handler, on_ticket_changed, on_ticket_commented

INDEX_GROUP = "search-index"
INVALIDATE_GROUP = "search-invalidate"

TagsOf = Callable[[TicketEvent], Sequence[str]]


class IndexConsumer:
    """Safe to repeat: also events that the index has already are told to the cache, for that may have failed."""

    def __init__(self, documents: Documents, tags: Tags) -> None:
        self._documents = documents
        self._tags = tags

    async def apply(self, events: Sequence[TicketEvent]) -> None:
        _require_known(events, INDEX_HANDLERS)
        await self._documents.apply(events, INDEX_HANDLERS)
        await _bump(self._tags, events, lambda event: [search_tag(event.organization_id)])


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


def by_organization(events: Iterable[TicketEvent], tags_of: TagsOf) -> list[tuple[list[str], Position]]:
    """The tags of each organization's events with the highest of their positions.

    What belongs together is bumped together: see `libs.common.cache.loads.Question`.
    """
    found: dict[uuid.UUID, tuple[dict[str, None], Position]] = {}
    for event in events:
        tags, highest = found.get(event.organization_id, ({}, event.position))
        tags |= dict.fromkeys(tags_of(event))
        found[event.organization_id] = (tags, max(highest, event.position))
    return [(list(tags), position) for tags, position in found.values()]


async def _bump(tags: Tags, events: Iterable[TicketEvent], tags_of: TagsOf) -> None:
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
