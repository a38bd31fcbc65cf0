"""The wire form of events, and everything that is not one."""

import datetime as dt
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.consistency import Position
from libs.common.events import (
    Actor,
    EventError,
    EventTypes,
    Headers,
    TicketEventData,
    decode,
    encode_data,
    headers,
)
from libs.common.models import TEXT_LENGTH, TITLE_LENGTH, Comment, Priority, Status, Ticket

REQUIRED = (
    "ce_specversion",
    "ce_id",
    "ce_type",
    "ce_subject",
    "ce_time",
    "ce_organizationid",
    "ce_ticketversion",
    "ce_consistency",
)
text = st.text(st.characters(exclude_categories=["Cs"]))
times = st.datetimes(dt.datetime(2020, 1, 1), dt.datetime(2100, 1, 1), timezones=st.just(dt.UTC))  # noqa: DTZ001
tickets = st.builds(
    Ticket,
    id=st.uuids(),
    number=st.integers(1, 2**53),
    organization_id=st.uuids(),
    title=text,
    description=text,
    status=st.sampled_from(Status),
    priority=st.sampled_from(Priority),
    user_id=st.uuids(),
    assigned_to=st.none() | st.uuids(),
    external_id=st.none() | text,
    fields=st.dictionaries(text, text, max_size=5),
    version=st.integers(1, 2**53),
    created_at=times,
    updated_at=times,
)
comments = st.builds(Comment, id=st.uuids(), ticket_id=st.uuids(), author_id=st.uuids(), body=text, created_at=times)
data = st.builds(
    TicketEventData,
    ticket=tickets,
    changed=st.lists(text, max_size=3),
    actor=st.builds(Actor, id=st.uuids(), kind=st.sampled_from(["session", "api_key"]), name=text),
    comment=st.none() | comments,
)


def headers_of(value: TicketEventData, **changes: Any) -> Headers:
    arguments: dict[str, Any] = {
        "event_id": uuid.uuid4(),
        "event_type": EventTypes.CREATED.name,
        "time": value.ticket.updated_at,
        "ticket_id": value.ticket.id,
        "organization_id": value.ticket.organization_id,
        "version": value.ticket.version,
        "position": Position(1, 2),
        "traceparent": None,
    }
    return headers(**(arguments | changes))


TICKET = Ticket(
    id=uuid.UUID(int=1),
    number=1,
    organization_id=uuid.UUID(int=2),
    title="t",
    description="",
    status=Status.OPEN,
    priority=Priority.LOW,
    user_id=uuid.UUID(int=3),
    assigned_to=None,
    external_id=None,
    fields={},
    version=1,
    created_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    updated_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
)
DATA = TicketEventData(ticket=TICKET, changed=[], actor=Actor(TICKET.user_id, "session", "A"))
VALUE = encode_data(DATA)


@given(
    data,
    st.uuids(),
    st.sampled_from(list(EventTypes.ALL)),
    st.builds(Position, st.integers(1, 2**32 - 1), st.integers(0, 2**64 - 1)),
    st.none() | st.just("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
)
def test_an_event_is_read_as_it_was_written(
    value: TicketEventData, event_id: uuid.UUID, event_type: str, position: Position, traceparent: str | None
) -> None:
    event = decode(
        headers_of(value, event_id=event_id, event_type=event_type, position=position, traceparent=traceparent),
        encode_data(value),
    )
    assert event.data == value
    assert (event.id, event.type, event.position, event.traceparent) == (event_id, event_type, position, traceparent)
    assert event.time == value.ticket.updated_at
    assert (event.organization_id, event.version) == (value.ticket.organization_id, value.ticket.version)


@pytest.mark.parametrize("name", REQUIRED)
def test_an_event_without_a_header_is_none(name: str) -> None:
    left = [(key, content) for key, content in headers_of(DATA) if key != name]
    with pytest.raises(EventError, match=name):
        decode(left, VALUE)


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"nonsense", b"-1", b"\x00", None])
def test_a_malformed_header_makes_it_no_event(name: str, content: bytes | None) -> None:
    changed = [(key, content if key == name else old) for key, old in headers_of(DATA)]
    with pytest.raises(EventError):
        decode(changed, VALUE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ce_specversion", b"0.3"),
        ("ce_type", b"ticket.created.v2"),
        ("ce_subject", str(uuid.uuid4()).encode()),
        ("ce_organizationid", str(uuid.uuid4()).encode()),
        ("ce_ticketversion", b"2"),
        ("ce_time", b"2026-01-01T00:00:00"),
    ],
)
def test_headers_that_contradict_the_value_or_the_registry_make_it_no_event(name: str, content: bytes) -> None:
    changed = [(key, content if key == name else old) for key, old in headers_of(DATA)]
    with pytest.raises(EventError):
        decode(changed, VALUE)


@pytest.mark.parametrize(
    "value", [None, b"", b"{}", b"null", VALUE[:-1], b"[" * 100_000, VALUE.replace(b'"low"', b'"lowest"')]
)
def test_a_value_of_another_form_makes_it_no_event(value: bytes | None) -> None:
    with pytest.raises(EventError):
        decode(headers_of(DATA), value)


def test_a_header_that_we_do_not_know_may_be_anything() -> None:
    more: list[tuple[str, Any]] = [*headers_of(DATA), ("ce_future", b"\xff"), ("nothing", None)]
    assert decode(more, VALUE).data == DATA


def test_a_field_that_a_newer_producer_added_is_passed_over() -> None:
    newer = msgspec.json.decode(VALUE) | {"added": 1}
    newer["ticket"]["added"] = {"x": [1]}
    assert decode(headers_of(DATA), msgspec.json.encode(newer)).data == DATA


def test_the_largest_event_that_the_limits_allow_fits_into_a_message() -> None:
    worst = "\x01"  # six bytes in JSON
    ticket = msgspec.structs.replace(
        TICKET,
        title=worst * TITLE_LENGTH,
        description=worst * TEXT_LENGTH,
        external_id=worst * 200,
        fields={f"{number:02}" + worst * 62: worst * 1000 for number in range(50)},
    )
    comment = Comment(
        id=TICKET.id,
        ticket_id=TICKET.id,
        author_id=TICKET.id,
        body=worst * TEXT_LENGTH,
        created_at=TICKET.created_at,
    )
    largest = TicketEventData(ticket=ticket, changed=["title"], actor=DATA.actor, comment=comment)
    assert len(encode_data(largest)) < 2 * 1024 * 1024 - 10_000
