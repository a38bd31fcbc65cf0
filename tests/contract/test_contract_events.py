"""The wire form of every event type, compared with golden files: events only gain fields.

`golden/` is the form of today, `golden/previous/` the one before: its events lie in topics for days after an upgrade,
and its readers meet the events of today. After a change that is meant, and only adds: move what is in `golden/` to
`golden/previous/`, its schemas as well (`components` of asyncapi.json), then `RELAYDESK_WRITE_GOLDEN=1 pytest
tests/contract`.
"""

import datetime as dt
import json
import os
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

from libs.common import asyncapi
from libs.common.consistency import Position
from libs.common.events import Actor, EventType, EventTypes, TicketEventData, decode, encode_data, headers
from libs.common.models import Comment, Priority, Status, Ticket

GOLDEN = Path(__file__).parent / "golden"
PREVIOUS = GOLDEN / "previous"
AT = dt.datetime(2026, 3, 1, 12, 30, 0, 123456, tzinfo=dt.UTC)


def _id(number: int) -> uuid.UUID:
    return uuid.UUID(int=0x018F0000_0000_7000_8000_000000000000 + number)


TICKET = Ticket(
    id=_id(1),
    number=17,
    organization_id=_id(2),
    title="Printer on fire",
    description="It burns.",
    status=Status.PENDING,
    priority=Priority.URGENT,
    user_id=_id(3),
    assigned_to=_id(4),
    external_id="legacy-17",
    fields={"floor": "3"},
    version=5,
    created_at=AT,
    updated_at=AT + dt.timedelta(hours=1),
    first_response_at=AT + dt.timedelta(minutes=5),
    solved_at=AT + dt.timedelta(hours=1),
)
COMMENT = Comment(id=_id(5), ticket_id=_id(1), author_id=_id(3), body="On my way.", created_at=AT)
CHANGED = {
    EventTypes.CREATED.name: [],
    EventTypes.UPDATED.name: ["title", "priority"],
    EventTypes.STATUS_CHANGED.name: ["status"],
    EventTypes.ASSIGNED.name: ["assigned_to"],
    EventTypes.COMMENTED.name: [],
}


def message(event_type: EventType) -> tuple[list[tuple[str, bytes]], bytes]:
    data = TicketEventData(
        ticket=TICKET,
        changed=CHANGED[event_type.name],
        actor=Actor(id=_id(3), kind="session", name="Ada"),
        comment=COMMENT if event_type is EventTypes.COMMENTED else None,
    )
    return (
        headers(
            event_id=_id(6),
            event_type=event_type.name,
            time=TICKET.updated_at,
            ticket_id=TICKET.id,
            organization_id=TICKET.organization_id,
            version=TICKET.version,
            position=Position(1, 0x16B3748),
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        encode_data(data),
    )


def golden(event_type: EventType) -> dict[str, Any]:
    path = GOLDEN / f"{event_type.name}.json"
    if os.environ.get("RELAYDESK_WRITE_GOLDEN"):
        found, value = message(event_type)
        wire = {"headers": {name: content.decode() for name, content in found}, "value": json.loads(value)}
        path.write_text(json.dumps(wire, indent=2) + "\n")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """What a reader of the old form would miss in the new one; fields that were added do not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        lost = [f"{place}/{name} has disappeared" for name in old.keys() - new.keys()]
        kept = [differences(old[name], new[name], f"{place}/{name}") for name in old.keys() & new.keys()]
        return lost + [line for lines in kept for line in lines]
    return [] if type(old) is type(new) and old == new else [f"{place} was {old!r} and is {new!r}"]


@pytest.mark.parametrize("event_type", EventTypes.ALL.values(), ids=list(EventTypes.ALL))
def test_an_event_has_all_that_its_golden_file_has(event_type: EventType) -> None:
    found, value = message(event_type)
    wire = {"headers": {name: content.decode() for name, content in found}, "value": json.loads(value)}
    assert differences(golden(event_type), wire) == []


@pytest.mark.parametrize("event_type", EventTypes.ALL.values(), ids=list(EventTypes.ALL))
def test_a_consumer_of_today_reads_the_golden_file(event_type: EventType) -> None:
    wire = golden(event_type)
    found, value = message(event_type)
    old = decode([(name, text.encode()) for name, text in wire["headers"].items()], json.dumps(wire["value"]).encode())
    new = decode(found, value)
    assert msgspec.structs.replace(old, value=b"") == msgspec.structs.replace(new, value=b"")  # spaces may differ


@pytest.mark.parametrize("event_type", EventTypes.ALL.values(), ids=list(EventTypes.ALL))
def test_a_field_that_was_added_stands_in_the_golden_file_too(event_type: EventType) -> None:
    """Otherwise nobody would notice when it disappears again."""
    found, value = message(event_type)
    wire = {"headers": {name: content.decode() for name, content in found}, "value": json.loads(value)}
    assert differences(wire, golden(event_type)) == []


@pytest.mark.parametrize("path", sorted(PREVIOUS.glob("ticket.*.json")), ids=lambda path: path.stem)
def test_a_consumer_of_today_reads_an_event_of_the_version_before(path: Path) -> None:
    wire = json.loads(path.read_text())
    event = decode(
        [(name, text.encode()) for name, text in wire["headers"].items()], json.dumps(wire["value"]).encode()
    )
    assert differences(wire["value"], json.loads(msgspec.json.encode(event.data))) == []


@pytest.mark.parametrize("path", sorted(PREVIOUS.glob("ticket.*.json")), ids=lambda path: path.stem)
def test_a_consumer_of_the_version_before_finds_all_that_it_reads(path: Path) -> None:
    old, new = json.loads(path.read_text()), golden(EventTypes.ALL[path.stem])
    assert differences(old, new) == []


def test_the_schemas_of_the_version_before_describe_the_events_of_today() -> None:
    previous = json.loads((PREVIOUS / "schemas.json").read_text())
    assert {"TicketEventData", "Ticket", "EventHeaders"} <= previous.keys()
    today = asyncapi.document()["components"]["schemas"]
    losses = [line for name, schema in previous.items() for line in narrowings(schema, today.get(name), name)]
    assert losses == []


def narrowings(old: Any, new: Any, place: str) -> list[str]:
    """Where a value of the schema `new` would not be what a reader of `old` expects. Added properties do not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [
            f"{place}: {name} may be missing now" for name in old.get("required", ()) if name not in new["required"]
        ]
        for name in old.keys() - {"required", "description", "title"}:
            found += narrowings(old[name], new.get(name), f"{place}/{name}")
        return found
    return [] if old == new else [f"{place} was {old!r} and is {new!r}"]


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 0),
        ({"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}, 0),
        ({"required": ["a", "b"]}, 0),
        ({"required": []}, 1),
        ({"properties": {}}, 1),
        ({"properties": {"a": {"type": "integer"}}}, 1),
        ({"properties": {"a": {"type": "string", "description": "x"}}}, 0),
    ],
)
def test_the_comparison_of_schemas_notices_what_a_reader_would_miss(change: dict[str, Any], count: int) -> None:
    old = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert len(narrowings(old, old | change, "")) == count


def test_there_is_a_golden_file_for_every_declared_type_and_for_no_other() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(EventTypes.ALL)


@pytest.mark.parametrize(
    ("old", "new", "count"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, 0),
        ({"a": 1, "b": 2}, {"a": 1}, 1),
        ({"a": 1}, {"a": "1"}, 1),
        ({"a": {"b": 1}}, {"a": None}, 1),
        ({"a": {"b": 1, "c": 1}}, {"a": {"d": 1}}, 2),
        ({"a": 1}, {"a": True}, 1),
    ],
)
def test_the_comparison_notices_what_disappears_or_changes_its_type(old: object, new: object, count: int) -> None:
    assert len(differences(old, new)) == count
