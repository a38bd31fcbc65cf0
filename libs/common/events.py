"""Every event type, declared once, and its wire form: CloudEvents 1.0 in Kafka's binary mode.

The value is the JSON of `TicketEventData`; everything about the event stands in `ce_*` headers. Events are
self-contained (the ticket after the change) and only gain fields. Golden files in tests/contract hold the wire form.
"""

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from libs.common.consistency import Position
from libs.common.models import Comment, Ticket

TOPIC = "relaydesk.tickets.v1"
SOURCE = "/relaydesk/tickets"
CONTENT_TYPE = "application/json"

Headers = list[tuple[str, bytes]]


class Actor(msgspec.Struct, frozen=True):
    """Who made the change, signed in (`kind` is `session`) or by an API key (`api_key`)."""

    id: uuid.UUID
    kind: str
    name: str


class TicketEventData(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of every ticket event.

    `changed` names the fields that a change of the ticket set anew; it is empty for creations and comments.
    """

    ticket: Ticket
    changed: list[str]
    actor: Actor
    comment: Comment | None = None


class EventType(msgspec.Struct, frozen=True):
    """One declared event type; `summary` stands in the AsyncAPI document."""

    name: str
    summary: str


class EventTypes:
    """The registry: what is not here is neither written nor applied."""

    CREATED: ClassVar = EventType("ticket.created.v1", "A ticket was created; its version is 1.")
    UPDATED: ClassVar = EventType("ticket.updated.v1", "Title, description or priority changed.")
    STATUS_CHANGED: ClassVar = EventType(
        "ticket.status_changed.v1", "The status changed, possibly together with other fields."
    )
    ASSIGNED: ClassVar = EventType(
        "ticket.assigned.v1", "The assignee changed, possibly together with other fields but the status."
    )
    COMMENTED: ClassVar = EventType("ticket.commented.v1", "A comment was added; the event holds it.")
    ALL: ClassVar = {t.name: t for t in (CREATED, UPDATED, STATUS_CHANGED, ASSIGNED, COMMENTED)}


class TicketEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event as consumers see it. `position` is the write-ahead log position that includes the write.

    `value` is the JSON as it was in Kafka: who hands an event on uses it, with the fields that a newer producer added.
    """

    id: uuid.UUID
    type: str
    time: dt.datetime
    organization_id: uuid.UUID
    version: int
    position: Position
    traceparent: str | None
    data: TicketEventData
    value: bytes


class EventError(Exception):
    """A message that is no event of ours; the message says why."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(TicketEventData)


def encode_data(data: TicketEventData) -> bytes:
    return _encoder.encode(data)


def headers(
    *,
    event_id: uuid.UUID,
    event_type: str,
    time: dt.datetime,
    ticket_id: uuid.UUID,
    organization_id: uuid.UUID,
    version: int,
    position: Position,
    traceparent: str | None,
) -> Headers:
    """The headers of the binary content mode (CloudEvents Kafka protocol binding 1.0.2, section 3.2)."""
    result = [
        ("ce_specversion", b"1.0"),
        ("ce_id", str(event_id).encode()),
        ("ce_source", SOURCE.encode()),
        ("ce_type", event_type.encode()),
        ("ce_subject", str(ticket_id).encode()),
        ("ce_time", time.astimezone(dt.UTC).isoformat().replace("+00:00", "Z").encode()),
        ("ce_organizationid", str(organization_id).encode()),
        ("ce_ticketversion", str(version).encode()),
        ("ce_consistency", position.token().encode()),
        ("content-type", CONTENT_TYPE.encode()),
    ]
    if traceparent:
        result.append(("traceparent", traceparent.encode()))
    return result


def decode(message_headers: Sequence[tuple[str, bytes]], value: bytes | None) -> TicketEvent:
    """Read a Kafka message.

    Raises:
        EventError: for a missing or malformed header, an undeclared type, a value of another form, and for headers that
            contradict the value.
    """
    found = {name: (content or b"").decode("utf-8", "replace") for name, content in message_headers}
    try:
        if found["ce_specversion"] != "1.0":
            raise EventError(f"CloudEvents version {found['ce_specversion']} is not supported")
        if found["ce_type"] not in EventTypes.ALL:
            raise EventError(f"event type {found['ce_type']!r} is not declared")
        event = TicketEvent(
            id=uuid.UUID(found["ce_id"]),
            type=found["ce_type"],
            time=dt.datetime.fromisoformat(found["ce_time"]),
            organization_id=uuid.UUID(found["ce_organizationid"]),
            version=int(found["ce_ticketversion"]),
            position=Position.from_token(found["ce_consistency"]),
            traceparent=found.get("traceparent"),
            data=_decoder.decode(value or b""),
            value=value or b"",
        )
        _require_consistent(event, uuid.UUID(found["ce_subject"]))
    except EventError:
        raise
    except KeyError as error:
        raise EventError(f"header {error.args[0]} is missing") from error
    except Exception as error:
        raise EventError(str(error) or repr(error)) from error
    return event


def _require_consistent(event: TicketEvent, subject: uuid.UUID) -> None:
    """Consumers route by the headers and show the value: a message in which they differ is nobody's."""
    ticket = event.data.ticket
    if event.time.tzinfo is None:
        raise EventError("ce_time has no offset from UTC")
    if (subject, event.organization_id, event.version) != (ticket.id, ticket.organization_id, ticket.version):
        raise EventError("the headers name another ticket, organization or version than the value")
