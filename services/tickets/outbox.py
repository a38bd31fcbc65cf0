"""The outbox: how a change becomes an event, and a line of history, in the transaction that makes the change."""

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from libs.common.events import Actor, EventType, EventTypes, TicketEventData, encode_data
from libs.common.identity import Principal
from libs.common.models import Comment, Ticket
from libs.common.tracing import current_traceparent

SHARDS = 64
_JSON = msgspec.json.Encoder()

# A field's value before and after.
Changes = Mapping[str, tuple[Any, Any]]


class OutboxRow(msgspec.Struct, frozen=True):
    """An event that waits for the relay; its position is drawn when the row is inserted.

    `changes` is the JSON of what its line of history tells: field → [old, new].
    """

    shard: int
    event_id: uuid.UUID
    type: str
    data: bytes
    traceparent: str | None
    actor: Actor
    changes: str


def shard_of(ticket_id: uuid.UUID) -> int:
    """0 to 63, evenly: the low bits of a UUIDv7 are random (RFC 9562, section 5.7)."""
    return ticket_id.int % SHARDS


def row(
    event_type: EventType,
    ticket: Ticket,
    *,
    event_id: uuid.UUID,
    principal: Principal,
    changes: Changes | None = None,
    comment: Comment | None = None,
) -> OutboxRow:
    """The event that tells of `ticket` as it is after the change."""
    actor = Actor(id=principal.user_id, kind=principal.credential, name=principal.name)
    data = TicketEventData(ticket=ticket, changed=list(changes or ()), actor=actor, comment=comment)
    told: Changes = {"comment_id": (None, comment.id)} if comment else changes or {}
    return OutboxRow(
        shard=shard_of(ticket.id),
        event_id=event_id,
        type=event_type.name,
        data=encode_data(data),
        traceparent=current_traceparent(),
        actor=actor,
        changes=_JSON.encode(told).decode(),
    )


def type_of_update(changes: Changes) -> EventType:
    """One change is one event; the weightiest field names it."""
    if "status" in changes:
        return EventTypes.STATUS_CHANGED
    if "assigned_to" in changes:
        return EventTypes.ASSIGNED
    return EventTypes.UPDATED
