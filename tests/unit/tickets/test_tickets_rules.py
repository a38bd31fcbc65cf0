"""What the tickets service decides without a database."""

import uuid
from typing import Any, cast

import pytest
import typer
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from libs.common.events import EventType, EventTypes
from libs.common.problems import Problem
from services.tickets.__main__ import _new_user
from services.tickets.outbox import SHARDS, shard_of, type_of_update
from services.tickets.parameters import ticket_id_of
from services.tickets.relay import _waves
from services.tickets.routes_tickets import _expected_version


def expected_version(if_match: str) -> int:
    return _expected_version(make_mocked_request("PATCH", "/", headers={"If-Match": if_match}))


def test_if_match_names_one_version() -> None:
    assert expected_version('"3"') == 3
    assert expected_version(' "3" ') == 3


@pytest.mark.parametrize(
    "text",
    ["", "3", '"3', '3"', '"-3"', '""', 'W/"3"', '"3", "4"', "*", '"x"', '""3""', '"' + "9" * 19 + '"', '"\u0663"'],
)
def test_any_other_if_match_is_refused(text: str) -> None:
    with pytest.raises(Problem, match="invalid_parameter"):
        expected_version(text)


def test_an_update_needs_if_match() -> None:
    with pytest.raises(Problem, match="precondition_required"):
        _expected_version(make_mocked_request("PATCH", "/"))


@pytest.mark.parametrize("text", ["1", "bulk2", "' OR 1=1", "\x00"])
def test_what_is_no_uuid_names_no_ticket(text: str) -> None:
    request = make_mocked_request("GET", "/", match_info={"ticket_id": text})
    with pytest.raises(Problem, match="ticket_not_found"):
        ticket_id_of(request)


@pytest.mark.parametrize(
    ("changed", "event_type"),
    [
        (["title"], EventTypes.UPDATED),
        (["description", "priority"], EventTypes.UPDATED),
        (["title", "assigned_to"], EventTypes.ASSIGNED),
        (["assigned_to", "status"], EventTypes.STATUS_CHANGED),
    ],
)
def test_the_weightiest_change_names_the_event(changed: list[str], event_type: EventType) -> None:
    assert type_of_update(dict.fromkeys(changed, (None, None))) == event_type


@given(st.lists(st.uuids(version=4), min_size=1))
def test_a_ticket_has_one_shard_of_64(ids: list[uuid.UUID]) -> None:
    assert all(0 <= shard_of(ticket_id) == shard_of(uuid.UUID(str(ticket_id))) < SHARDS for ticket_id in ids)


@given(st.lists(st.integers(0, 5)))
def test_a_wave_holds_a_tickets_next_version_only(order: list[int]) -> None:
    rows = [{"ticket_id": uuid.UUID(int=ticket), "position": position} for position, ticket in enumerate(order)]
    waves = _waves(cast("Any", rows))
    assert sorted(row["position"] for wave in waves for row in wave) == list(range(len(rows)))
    for wave in waves:
        assert len({row["ticket_id"] for row in wave}) == len(wave)
    for ticket in set(order):
        positions = [row["position"] for wave in waves for row in wave if row["ticket_id"].int == ticket]
        assert positions == sorted(positions)


def test_a_user_to_provision_is_an_address_and_a_role() -> None:
    made = _new_user("Ada@Example.com:admin")
    assert (made.email, made.role) == ("ada@example.com", "admin")
    assert len(made.password) >= 16
    assert made.password != _new_user("ada@example.com:admin").password
    for text in ("ada@example.com", "ada:admin", "ada@example.com:owner", ""):
        with pytest.raises(typer.BadParameter):
            _new_user(text)
