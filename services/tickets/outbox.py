"""The outbox: how a change becomes an event in the transaction that makes the change."""

import uuid

import msgspec

from libs.common.events import Actor, EventType, EventTypes, TicketEventData, encode_data
from libs.common.identity import Principal
from libs.common.models import Comment, Ticket
from libs.common.tracing import current_traceparent

SHARDS = 64


class OutboxRow(msgspec.Struct, frozen=True):
    """An event that waits for the relay; its position is drawn when the row is inserted."""

    shard: int
    event_id: uuid.UUID
    type: str
    data: bytes
    traceparent: str | None


def shard_of(ticket_id: uuid.UUID) -> int:
    """0 to 63, evenly: the low bits of a UUIDv7 are random (RFC 9562, section 5.7)."""
    return ticket_id.int % SHARDS


def row(
    event_type: EventType,
    ticket: Ticket,
    *,
    event_id: uuid.UUID,
    changed: list[str],
    principal: Principal,
    comment: Comment | None = None,
) -> OutboxRow:
    """The event that tells of `ticket` as it is after the change."""
    data = TicketEventData(
        ticket=ticket,
        changed=changed,
        actor=Actor(id=principal.user_id, kind=principal.credential, name=principal.name),
        comment=comment,
    )
    return OutboxRow(
        shard=shard_of(ticket.id),
        event_id=event_id,
        type=event_type.name,
        data=encode_data(data),
        traceparent=current_traceparent(),
    )


def type_of_update(changed: list[str]) -> EventType:
    """One change is one event; the weightiest field names it."""
    if "status" in changed:
        return EventTypes.STATUS_CHANGED
    if "assigned_to" in changed:
        return EventTypes.ASSIGNED
    return EventTypes.UPDATED
