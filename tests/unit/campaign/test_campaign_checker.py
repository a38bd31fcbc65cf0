"""The campaign's checker finds every kind of violation, and its plan reaches every point."""

import dataclasses
import itertools
from typing import Any

import pytest

from services.tickets.relay import LEASE, SEND_SECONDS
from tests.chaos.campaign.checker import Creation, Delivery, Event, Evidence, Kind, Line, Update, check
from tests.chaos.campaign.points import POINTS, SPARED, Actor, Blow, combinations, plan

RENAMED = Event("t1", 2, "e2", "ticket.updated.v1", b"2")
COMMENTED = Event("t1", 3, "e3", "ticket.commented.v1", b"3")
CREATED = Event("t1", 1, "e1", "ticket.created.v1", b"1")
OTHER = Event("t2", 1, "e4", "ticket.created.v1", b"4")
WRITTEN = [CREATED, RENAMED, COMMENTED, OTHER]
CHANGES: dict[str, dict[str, Any]] = {"e2": {"title": ["Created 1", "Changed 2"]}, "e3": {"comment_id": [None, "c1"]}}


def sound() -> Evidence:
    """Two tickets, one renamed and commented on; one event came twice, and one update was refused."""
    return Evidence(
        creations=[
            Creation("k1", ["Created 1"], [b"t1", b"t1"]),
            Creation("k2", ["Comment 3"], [b"c1"]),
            Creation("k3", ["Created 4"], [b"t2"]),
            Creation("k4", ["Created 5"]),  # never answered, never made
        ],
        updates=[
            Update("t1", 1, "Changed 2", "applied"),
            Update("t1", 1, "Changed 6", "refused"),
            Update("t1", 2, "Changed 7", "unknown"),
        ],
        written=list(WRITTEN),
        history=[Line(*event[:4], CHANGES.get(event.event_id, {})) for event in WRITTEN],
        delivered=[
            Delivery(CREATED, 0),
            Delivery(OTHER, 1),
            Delivery(RENAMED, 0),
            Delivery(CREATED, 0),
            Delivery(RENAMED, 0),
            Delivery(COMMENTED, 0),
        ],
        first_titles={"t1": "Created 1", "t2": "Created 4"},
        titles={"t1": "Changed 2", "t2": "Created 4"},
        versions={"t1": 3, "t2": 1},
        comments=["Comment 3"],
    )


def with_line(evidence: Evidence, event_id: str, **changed: Any) -> list[Line]:
    return [line._replace(**changed) if line.event_id == event_id else line for line in evidence.history]


def kinds(**changes: Any) -> set[Kind]:
    return {violation.kind for violation in check(dataclasses.replace(sound(), **changes))}


def test_replays_refusals_and_doubts_are_no_violations() -> None:
    assert check(sound()) == []


def test_an_event_that_is_not_in_kafka_is_lost() -> None:
    assert kinds(delivered=sound().delivered[:-1]) == {Kind.LOST}


def test_a_ticket_whose_newest_version_left_no_trace_is_lost() -> None:
    assert Kind.LOST in kinds(versions={"t1": 4, "t2": 1})


def test_an_answered_creation_that_is_not_there_is_lost() -> None:
    gone = [Creation("k9", ["Created 9"], [b"t9"])]
    assert kinds(creations=[*sound().creations, *gone]) == {Kind.LOST}


def test_an_acknowledged_update_without_a_version_is_lost() -> None:
    assert Kind.LOST in kinds(updates=[*sound().updates, Update("t2", 1, "Changed 9", "applied")])


@pytest.mark.parametrize(
    "ghost",
    [
        CREATED._replace(ticket="t3"),
        RENAMED._replace(event_id="e9"),
        RENAMED._replace(type="ticket.assigned.v1"),
        RENAMED._replace(digest=b"another payload"),
    ],
)
def test_an_event_that_was_not_written_so_is_a_ghost(ghost: Event) -> None:
    assert Kind.GHOST in kinds(delivered=[*sound().delivered, Delivery(ghost, 0)])


def test_an_event_without_a_line_of_history_is_a_ghost() -> None:
    assert Kind.GHOST in kinds(history=[line for line in sound().history if line.event_id != "e4"])


@pytest.mark.parametrize("order", [[CREATED, COMMENTED, RENAMED], [RENAMED, CREATED, COMMENTED], [RENAMED, COMMENTED]])
def test_a_version_out_of_its_turn_is_found(order: list[Event]) -> None:
    assert Kind.ORDER in kinds(delivered=[Delivery(event, 0) for event in [*order, OTHER]])


def test_a_ticket_in_two_partitions_is_found() -> None:
    assert kinds(delivered=[*sound().delivered, Delivery(COMMENTED, 2)]) == {Kind.PARTITION}


def test_two_acknowledged_updates_of_one_version_are_a_lost_update() -> None:
    overwritten = Update("t1", 1, "Changed 6", "applied")
    assert kinds(updates=[*sound().updates[:1], overwritten]) == {Kind.LOST_UPDATE}


def test_a_refused_update_that_was_made_is_found() -> None:
    assert kinds(updates=[Update("t1", 1, "Changed 2", "refused")]) == {Kind.LOST_UPDATE}


def test_a_doubtful_update_that_was_made_twice_is_found() -> None:
    evidence = sound()
    twice = with_line(evidence, "e3", changes={"title": ["Changed 2", "Changed 2"]})
    assert kinds(updates=[Update("t1", 1, "Changed 2")], history=twice) == {Kind.LOST_UPDATE}


def test_an_update_that_was_made_on_another_version_is_found() -> None:
    assert kinds(updates=[Update("t1", 2, "Changed 2", "applied")]) == {Kind.LOST_UPDATE}


def test_a_change_that_replaced_another_title_than_the_last_is_a_fork() -> None:
    forked = with_line(sound(), "e2", changes={"title": ["Created 0", "Changed 2"]})
    assert kinds(history=forked) == {Kind.LOST_UPDATE}


def test_a_gap_in_the_history_is_found() -> None:
    gap = with_line(sound(), "e3", version=4)
    assert Kind.LOST_UPDATE in kinds(history=gap)


def test_a_ticket_that_is_not_what_its_history_says_is_found() -> None:
    assert kinds(titles={"t1": "Created 1", "t2": "Created 4"}) == {Kind.LOST_UPDATE}


def test_two_answers_to_one_key_are_found() -> None:
    assert kinds(creations=[Creation("k1", ["Created 1"], [b"t1", b"t2"])]) == {Kind.DUPLICATE}


def test_a_comment_that_was_made_twice_is_found() -> None:
    assert kinds(comments=["Comment 3", "Comment 3"]) == {Kind.DUPLICATE}


def test_a_ticket_that_was_created_twice_is_found_also_when_nobody_was_answered() -> None:
    twice = [Creation("k9", ["Created 4"])]
    assert kinds(creations=twice, first_titles={"t1": "Created 4", "t2": "Created 4"}) >= {Kind.DUPLICATE}


def test_a_version_that_was_written_twice_is_found() -> None:
    assert kinds(written=[*WRITTEN, RENAMED._replace(event_id="e9")]) == {Kind.DUPLICATE}


def test_a_plan_follows_from_its_seed() -> None:
    assert list(itertools.islice(plan(7), 50)) == list(itertools.islice(plan(7), 50))
    assert list(itertools.islice(plan(7), 50)) != list(itertools.islice(plan(8), 50))


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_reaches_every_point_at_once_and_every_combination_in_time(seed: int) -> None:
    faults = list(itertools.islice(plan(seed), 72))
    for start in range(0, 72, 6):
        assert {fault.point for fault in faults[start : start + 6]} == set(POINTS)
    every = {(point, actor, blow) for point, found in combinations().items() for actor, blow in found}
    for half in (faults[:36], faults[36:]):
        assert {(fault.point, fault.actor, fault.blow) for fault in half} == every


def test_who_is_spared_is_never_killed_and_some_faults_outlast_lease_and_patience() -> None:
    faults = list(itertools.islice(plan(3), 500))
    killed = {f.process for f in faults if f.blow is Blow.KILL and f.actor in {Actor.SERVICE, Actor.RELAY}}
    assert killed == {"service-1", "relay-1"}
    assert not killed & SPARED
    assert any(f.seconds > LEASE.total_seconds() and f.actor is Actor.RELAY and f.blow is Blow.PAUSE for f in faults)
    assert {f.blow for f in faults if f.seconds > SEND_SECONDS and f.actor is Actor.BROKER} == set(Blow)
