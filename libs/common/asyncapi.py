"""The AsyncAPI 3.0 document of the topic and the socket: `python -m libs.common.asyncapi` prints it.

The topic's half is made from the declarations in events.py. Of the socket, AsyncAPI can say which messages there are
and which is the acknowledgement of which; the handshake and reconnection stand in docs/api/realtime.md.
"""

import datetime as dt
import sys
import uuid
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from libs.common.events import CONTENT_TYPE, SOURCE, TOPIC, EventType, EventTypes, TicketEventData

_KAFKA_BINDING = "0.5.0"

HEADERS: Mapping[str, dict[str, Any]] = {
    "ce_specversion": {"type": "string", "const": "1.0", "description": "The version of CloudEvents."},
    "ce_id": {
        "type": "string",
        "format": "uuid",
        "description": "The event's own id; a replay bears the same one.",
    },
    "ce_source": {"type": "string", "const": SOURCE, "description": "The service that is the system of record."},
    "ce_type": {"type": "string", "enum": list(EventTypes.ALL), "description": "What happened."},
    "ce_subject": {"type": "string", "format": "uuid", "description": "The ticket's id, as in the key."},
    "ce_time": {"type": "string", "format": "date-time", "description": "When the change was made: RFC 3339, UTC."},
    "ce_organizationid": {"type": "string", "format": "uuid", "description": "The organization of the ticket."},
    "ce_ticketversion": {
        "type": "string",
        "pattern": "^[1-9][0-9]*$",
        "description": "The ticket's version after the change; 1 is its creation, each change adds 1.",
    },
    "ce_consistency": {
        "type": "string",
        "description": "A consistency token that includes the change; opaque. A replay may bear a later one.",
    },
    "content-type": {"type": "string", "const": CONTENT_TYPE, "description": "What the value is."},
    "traceparent": {"type": "string", "description": "W3C trace context of the change, where there was one."},
}
OPTIONAL_HEADERS = frozenset({"traceparent"})


class Notification(TicketEventData, frozen=True, kw_only=True):
    """An event as the socket tells it; `offset` is its position in the organization's feed, opaque to clients."""

    offset: str
    id: uuid.UUID
    type: str
    time: dt.datetime
    version: int
    consistency: str


class Room(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of `subscribe` and `unsubscribe`."""

    room: Literal["organization"]


class Accepted(msgspec.Struct, frozen=True):
    """The acknowledgement of a request that was carried out."""

    ok: Literal[True]
    room: Literal["organization"]


class Refused(msgspec.Struct, frozen=True):
    """The acknowledgement of a request that was not; `code` is one of the HTTP API's problem codes."""

    ok: Literal[False]
    code: str
    detail: str | None


def document() -> dict[str, Any]:
    """The whole document as plain data."""
    models = (TicketEventData, list[Notification], Room, Accepted, Refused)
    schemas, components = msgspec.json.schema_components(models, ref_template="#/components/schemas/{name}")
    data, notifications, room, accepted, refused = schemas
    events = {event_type.name: _event(event_type, data) for event_type in EventTypes.ALL.values()}
    socket = {
        "subscribe": _socket_message("subscribe", "Ask for the organization's notifications.", room),
        "unsubscribe": _socket_message("unsubscribe", "Ask for no more of them.", room),
        "acknowledgement": _socket_message(
            "acknowledgement", "The answer to either of them.", {"oneOf": [accepted, refused]}
        ),
        "notifications": _socket_message(
            "notifications",
            "What happened in the organization since the last one, at most every 100 ms.",
            notifications,
        ),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Relaydesk events",
            "version": "1.0.0",
            "description": (
                "What Relaydesk tells of its tickets: CloudEvents 1.0 in Kafka's binary content mode, and the same "
                "events over Socket.IO. Events are self-contained and only gain fields: ignore what you do not know."
            ),
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {
            "kafka": {"host": "{bootstrap}", "protocol": "kafka", "variables": _variable("bootstrap", "host:port")},
            "notifier": {
                "host": "{notifier}",
                "pathname": "/socket.io/",
                "protocol": "socket.io",
                "protocolVersion": "5",
                "description": (
                    "Connect with `auth={token}`; POST /api/realtime/token gives the token and this address."
                ),
                "variables": _variable("notifier", "The host of `url` in that answer."),
            },
        },
        "channels": {
            "tickets": {
                "address": TOPIC,
                "description": (
                    "Every change of every ticket. One ticket's events are in one partition, in the order of its "
                    "versions; an event may be repeated."
                ),
                "servers": [{"$ref": "#/servers/kafka"}],
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in events},
                "bindings": {"kafka": {"topic": TOPIC, "bindingVersion": _KAFKA_BINDING}},
            },
            "realtime": {
                "address": "/",
                "description": "The Socket.IO namespace; a message's name is the Socket.IO event.",
                "servers": [{"$ref": "#/servers/notifier"}],
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in socket},
            },
        },
        "operations": {
            "publishTicketEvents": _operation("send", "tickets", *events),
            "subscribe": {**_operation("receive", "realtime", "subscribe"), "reply": _acknowledged()},
            "unsubscribe": {**_operation("receive", "realtime", "unsubscribe"), "reply": _acknowledged()},
            "notify": _operation("send", "realtime", "notifications"),
        },
        "components": {
            "messages": events | socket,
            "schemas": {
                "EventHeaders": {
                    "title": "EventHeaders",
                    "type": "object",
                    "properties": dict(HEADERS),
                    "required": [name for name in HEADERS if name not in OPTIONAL_HEADERS],
                },
                **components,
            },
        },
    }


def _event(event_type: EventType, data: Mapping[str, Any]) -> dict[str, Any]:
    this_type = {"properties": {"ce_type": {"const": event_type.name}}}
    return {
        "name": event_type.name,
        "title": event_type.name,
        "summary": event_type.summary,
        "contentType": CONTENT_TYPE,
        "headers": {"type": "object", "allOf": [{"$ref": "#/components/schemas/EventHeaders"}, this_type]},
        "payload": dict(data),
        "bindings": {
            "kafka": {
                "key": {"type": "string", "format": "uuid", "description": "The ticket's id."},
                "bindingVersion": _KAFKA_BINDING,
            }
        },
    }


def _socket_message(name: str, summary: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "title": name, "summary": summary, "contentType": CONTENT_TYPE, "payload": dict(payload)}


def _operation(action: str, channel: str, *messages: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
    }


def _acknowledged() -> dict[str, Any]:
    return {
        "channel": {"$ref": "#/channels/realtime"},
        "messages": [{"$ref": "#/channels/realtime/messages/acknowledgement"}],
    }


def _variable(name: str, description: str) -> dict[str, Any]:
    return {name: {"description": description}}


def text() -> str:
    """The document as it is committed in docs/api/asyncapi.json."""
    return msgspec.json.format(msgspec.json.encode(document(), order="deterministic"), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
