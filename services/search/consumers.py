"""The two consumer groups of the ticket topic.

`search-index` applies events to the index and then invalidates cached search results; `search-invalidate`
invalidates cached tickets and lists at once, whatever the state of the index.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from libs.common.cache.tags import Tags, search_tag, ticket_tag, tickets_tag
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


def on_ticket_written(event: TicketEvent) -> Sequence[str]:
    """Every change of a ticket shows in the ticket and in the lists it may be in."""
    return [ticket_tag(event.data.ticket.id), tickets_tag(event.organization_id)]


def highest_positions(events: Iterable[TicketEvent], tags_of: TagsOf) -> dict[Position, list[str]]:
    """The tags of `events`, each with the highest position of its events, by position."""
    positions: dict[str, Position] = {}
    for event in events:
        for tag in tags_of(event):
            positions[tag] = max(event.position, positions.get(tag, event.position))
    tags: dict[Position, list[str]] = {}
    for tag, position in positions.items():
        tags.setdefault(position, []).append(tag)
    return tags


async def _bump(tags: Tags, events: Iterable[TicketEvent], tags_of: TagsOf) -> None:
    for position, bumped in highest_positions(events, tags_of).items():
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
    EventTypes.CREATED.name: on_ticket_written,
    EventTypes.UPDATED.name: on_ticket_written,
    EventTypes.STATUS_CHANGED.name: on_ticket_written,
    EventTypes.ASSIGNED.name: on_ticket_written,
    EventTypes.COMMENTED.name: on_ticket_written,
}
