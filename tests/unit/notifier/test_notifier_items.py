"""Items, batches, subscriptions and settings of the notifier."""

import itertools
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.events import EventTypes, TicketEventData
from libs.common.problems import Problem
from libs.common.settings import SettingsError, load
from services.notifier.consumers import HANDLERS, on_ticket_event
from services.notifier.delivery import split
from services.notifier.engine import _Json, _Packet
from services.notifier.settings import Settings
from services.notifier.sockets import _subscription
from services.notifier.streams import Entry, Position, _entry
from tests.support.realtime import ticket_event

REQUIRED = {
    "INTERNAL_SIGNING_KEY": "{}",
    "INTERNAL_TRUSTED_KEYS": "{}",
    "REDIS_URL": "redis://127.0.0.1",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9092",
}


def test_every_declared_event_type_has_a_handler() -> None:
    assert set(HANDLERS) == set(EventTypes.ALL)


@given(title=st.text(max_size=50), description=st.text(max_size=50))
def test_an_item_is_the_event_as_it_is_in_kafka_under_its_offset(title: str, description: str) -> None:
    event = ticket_event(uuid.uuid4(), uuid.uuid4(), 3, title=title, description=description)
    announcement = on_ticket_event(event)
    entry = _entry(b"17-4", {b"epoch": b"e1", b"item": announcement.item})
    item = msgspec.json.decode(entry.item)
    assert list(item)[:2] == ["offset", "id"]
    assert item["offset"] == "e1:17-4"
    assert item["id"] == str(event.id)
    assert item["type"] == event.type
    assert item["version"] == 3
    assert item["consistency"] == event.position.token()
    assert msgspec.convert(item, TicketEventData) == event.data
    assert (announcement.organization_id, announcement.ticket_id, announcement.version) == (
        event.organization_id,
        event.data.ticket.id,
        3,
    )


def test_a_field_that_a_newer_producer_added_reaches_the_clients() -> None:
    event = ticket_event(uuid.uuid4(), uuid.uuid4(), 1)
    newer = msgspec.structs.replace(event, value=event.value[:-1] + b',"severity":{"level":3}}')
    assert msgspec.json.decode(on_ticket_event(newer).item)["severity"] == {"level": 3}


def test_encoded_items_go_into_a_message_as_they_are() -> None:
    raw = msgspec.Raw(b'{"a" : 1}')
    packet = _Packet(data=["notifications", [raw, raw]], namespace="/")
    assert packet.encode() == '2["notifications",[{"a" : 1},{"a" : 1}]]'
    assert _Json.loads('["é"]') == ["é"]


@pytest.mark.parametrize(
    "text", ["", "x", "2", "2{}", "2[]", "2[7]", '2["a"', "3[]", "5", '51-["a"]', "9", "2" + "[" * 9999]
)
def test_a_malformed_packet_is_taken_as_the_end_of_the_connection(text: str) -> None:
    assert _Packet(encoded_packet=text).packet_type == 1


def test_packets_of_clients_are_understood() -> None:
    connect = _Packet(encoded_packet='0{"token":"t"}')
    assert (connect.packet_type, connect.data) == (0, {"token": "t"})
    event = _Packet(encoded_packet='27["subscribe",{"room":"organization"}]')
    assert (event.packet_type, event.id, event.data) == (2, 7, ["subscribe", {"room": "organization"}])
    assert _Packet(encoded_packet="31[]").packet_type == 3


@given(lengths=st.lists(st.integers(2, 60), max_size=40), limit=st.integers(1, 100))
def test_split_keeps_every_entry_in_order_within_the_limit(lengths: list[int], limit: int) -> None:
    entries = [Entry(Position("e", f"{number}-0"), msgspec.Raw(b"x" * length)) for number, length in enumerate(lengths)]
    batches = split(entries, limit)
    assert [entry for batch in batches for entry in batch] == entries
    for batch in batches:
        assert len(batch) == 1 or sum(len(bytes(entry.item)) + 1 for entry in batch) <= limit
    for left, right in itertools.pairwise(batches):
        assert sum(len(bytes(entry.item)) + 1 for entry in [*left, right[0]]) > limit


@pytest.mark.parametrize(
    "payload", [(), ({}, {}), ("organization",), ({"room": "x"},), ({"room": "organization", "x": 1},)]
)
def test_other_subscriptions_are_refused(payload: tuple[object, ...]) -> None:
    with pytest.raises(Problem) as refused:
        _subscription(payload)
    assert refused.value.code == "validation_failed"


def test_settings_have_no_browser_origins_unless_told() -> None:
    assert load(Settings, REQUIRED, prefix="NOTIFIER_").allowed_origins == ()
    told = {"NOTIFIER_ALLOWED_ORIGINS": "https://Desk.example.com, http://localhost:3000"}
    assert load(Settings, REQUIRED | told, prefix="NOTIFIER_").allowed_origins == (
        "https://desk.example.com",
        "http://localhost:3000",
    )


@pytest.mark.parametrize(
    "origin", ["*", "desk.example.com", "https://*.example.com", "https://a/", "ftp://a", "https://"]
)
def test_what_is_no_exact_origin_is_refused_at_start(origin: str) -> None:
    with pytest.raises(SettingsError, match="NOTIFIER_ALLOWED_ORIGINS"):
        load(Settings, REQUIRED | {"NOTIFIER_ALLOWED_ORIGINS": origin}, prefix="NOTIFIER_")


def test_unknown_and_missing_settings_are_told_together() -> None:
    with pytest.raises(SettingsError, match=r"(?s)REDIS_URL is missing.*NOTIFIER_PROT .*NOTIFIER_PORT"):
        load(Settings, REQUIRED | {"REDIS_URL": "", "NOTIFIER_PROT": "1"}, prefix="NOTIFIER_")
