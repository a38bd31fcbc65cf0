"""The wire form of every event type, compared with golden files: events only gain fields.

After a change that is meant, and only adds: `RELAYDESK_WRITE_GOLDEN=1 pytest tests/contract`.
"""

import datetime as dt
import json
import os
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

from libs.common.consistency import Position
from libs.common.events import Actor, EventType, EventTypes, TicketEventData, decode, encode_data, headers
from libs.common.models import Comment, Priority, Status, Ticket

GOLDEN = Path(__file__).parent / "golden"
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
