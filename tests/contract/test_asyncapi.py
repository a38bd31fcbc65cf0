"""docs/api/asyncapi.json is the generated document, and it says what the platform sends."""

import datetime as dt
import json
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from libs.common import asyncapi, events
from libs.common.consistency import Position
from libs.common.events import Actor, EventTypes, TicketEventData
from libs.common.models import Comment, Priority, Status, Ticket
from services.notifier import sockets, streams
from services.notifier.consumers import on_ticket_event
from tests.support.pages import DOCS

DOCUMENT = asyncapi.document()
MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC)
ORGANIZATION, TICKET = uuid.uuid4(), uuid.uuid4()


def test_the_committed_document_is_the_generated_one() -> None:
    committed = (DOCS / "api" / "asyncapi.json").read_text(encoding="utf-8")
    assert committed == asyncapi.text(), "python -m libs.common.asyncapi > docs/api/asyncapi.json"


def test_every_declared_event_type_is_a_message_of_the_topic() -> None:
    channel = DOCUMENT["channels"]["tickets"]
    assert channel["address"] == events.TOPIC
    assert set(channel["messages"]) == set(EventTypes.ALL)
    for name, event_type in EventTypes.ALL.items():
        message = DOCUMENT["components"]["messages"][name]
        assert message["name"] == name
        assert message["summary"] == event_type.summary
        assert message["bindings"]["kafka"]["key"]["format"] == "uuid"
        assert message["payload"] == {"$ref": "#/components/schemas/TicketEventData"}
        assert {"properties": {"ce_type": {"const": name}}} in message["headers"]["allOf"]
    sent = {reference["$ref"] for reference in DOCUMENT["operations"]["publishTicketEvents"]["messages"]}
    assert sent == {f"#/channels/tickets/messages/{name}" for name in EventTypes.ALL}


@pytest.mark.parametrize("traceparent", [None, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"])
def test_the_headers_are_those_that_are_sent(traceparent: str | None) -> None:
    schema = DOCUMENT["components"]["schemas"]["EventHeaders"]
    sent = dict(_headers(traceparent))
    assert set(schema["required"]) <= set(sent) <= set(schema["properties"])
    assert set(schema["properties"]) - set(schema["required"]) == {"traceparent"}
    for name, value in sent.items():
        wanted = schema["properties"][name]
        assert wanted.get("const", value.decode()) == value.decode()
        assert value.decode() in wanted.get("enum", [value.decode()])


@pytest.mark.parametrize(
    "comment", [None, Comment(id=TICKET, ticket_id=TICKET, author_id=TICKET, body="b", created_at=MOMENT)]
)
def test_a_notification_has_the_form_that_is_declared(comment: Comment | None) -> None:
    """As the notifier makes it: the item of the stream, with its offset."""
    value = events.encode_data(_data(comment))
    announcement = on_ticket_event(events.decode(_headers(None), value))
    sent: Any = streams._entry(b"1700000000000-0", {b"epoch": b"e", b"item": announcement.item}).item
    notification = msgspec.json.decode(bytes(sent), type=asyncapi.Notification)
    fields = set(json.loads(bytes(sent)))
    assert fields == set(asyncapi.Notification.__struct_fields__) - ({"comment"} if comment is None else set())
    assert notification.ticket == _data(comment).ticket


def test_the_socket_takes_the_declared_rooms_and_answers_as_declared() -> None:
    room = DOCUMENT["components"]["schemas"]["Room"]
    assert set(room["properties"]) == set(sockets.Subscription.__struct_fields__)
    for name in room["properties"]["room"]["enum"]:
        assert sockets._subscription(({"room": name},)).room == name
    assert sockets.EVENT in DOCUMENT["channels"]["realtime"]["messages"]
    assert DOCUMENT["servers"]["notifier"]["pathname"] == sockets.PATH


def test_the_document_is_whole() -> None:
    """AsyncAPI 3.0: what is required is there, every reference leads somewhere, nothing lies unused."""
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(DOCUMENT["info"])
    assert set(DOCUMENT) <= {
        *("asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components"),
    }
    for server in DOCUMENT["servers"].values():
        assert {"host", "protocol"} <= set(server)
        assert all(f"{{{name}}}" in server["host"] for name in server["variables"])
    references = set(_references(DOCUMENT))
    for reference in references:
        assert _resolve(reference) is not None, reference
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in {"send", "receive"}
        channel = operation["channel"]["$ref"]
        for told in (operation, operation.get("reply", {})):
            for message in told.get("messages", ()):
                assert message["$ref"].startswith(f"{channel}/messages/"), message
    for kind, entries in DOCUMENT["components"].items():
        for name in entries:
            assert f"#/components/{kind}/{name}" in references, f"{kind} {name} is used nowhere"
    for name, message in DOCUMENT["components"]["messages"].items():
        assert message["payload"], name
        assert message.get("headers", {"type": "object"})["type"] == "object", name


def _headers(traceparent: str | None) -> events.Headers:
    return events.headers(
        event_id=uuid.uuid4(),
        event_type=EventTypes.CREATED.name,
        time=MOMENT,
        ticket_id=TICKET,
        organization_id=ORGANIZATION,
        version=1,
        position=Position(1, 42),
        traceparent=traceparent,
    )


def _data(comment: Comment | None) -> TicketEventData:
    ticket = Ticket(
        id=TICKET,
        number=1,
        organization_id=ORGANIZATION,
        title="t",
        description="",
        status=Status.OPEN,
        priority=Priority.NORMAL,
        user_id=TICKET,
        assigned_to=None,
        external_id=None,
        fields={},
        version=1,
        created_at=MOMENT,
        updated_at=MOMENT,
    )
    return TicketEventData(ticket, [], Actor(TICKET, "session", "n"), comment)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _references(value)


def _resolve(reference: str) -> Any:
    node: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    return node
