"""The checker of the cache's campaign finds each kind of violation in a forged history, and none in a sound one."""

import dataclasses
from typing import Any

import pytest

from tests.chaos.cache_campaign.checker import Bound, Kind, check
from tests.chaos.cache_campaign.records import History, Read, Seen, Through, What, Window, Write

HERE, THERE = Through(0, 1), Through(1, 1)


def write(version: int, answered: float, **changed: Any) -> Write:
    made = Write(
        client=1,
        through=HERE,
        organization="o",
        ticket="t",
        number=1,
        version=version,
        title=f"zz revision {version}",
        comment=None,
        updated_at=answered,
        token=f"{version:03}",
        started=answered - 0.1,
        answered=answered,
    )
    return dataclasses.replace(made, **changed)


def read(version: int, started: float, **changed: Any) -> Read:
    made = Read(
        client=2,
        through=THERE,
        what=What.TICKET,
        organization="o",
        ticket="t",
        need=None,
        started=started,
        ended=started + 0.1,
        outcome="l1",
        token=f"{version:03}",
        seen=Seen({"t": version}, {"t": f"zz revision {version}"}),
    )
    return dataclasses.replace(made, **changed)


def kinds(*reads: Read, windows: tuple[Window, ...] = (), writes: tuple[Write, ...] = ()) -> list[Kind]:
    history = History(list(writes or (write(1, 10.0), write(2, 20.0))), list(reads), list(windows))
    return [violation.kind for violation in check(history).violations]


def test_a_bound_holds_from_its_moment_on_and_never_falls() -> None:
    bound: Bound[float] = Bound()
    for at, version in ((5.0, 3), (1.0, 1), (6.0, 2)):
        bound.add(at, version)
    bound.freeze()
    assert [bound.at(at) for at in (0.0, 1.0, 4.9, 5.0, 7.0)] == [0, 1, 1, 3, 3]


def test_two_seconds_are_allowed_and_no_more() -> None:
    assert kinds(read(1, 21.9)) == []
    assert kinds(read(1, 22.1)) == [Kind.TWO_SECONDS]
    assert kinds(read(2, 22.1)) == []


def test_a_token_is_honoured_at_once() -> None:
    assert kinds(read(1, 20.1, need="001")) == []
    assert kinds(read(1, 20.1, need="002")) == [Kind.TOKEN]


def test_what_an_answer_showed_binds_whoever_comes_with_its_token() -> None:
    told = read(2, 19.95, token="0015")
    assert kinds(told, read(1, 20.0, need="0015")) == [Kind.TOKEN]


def test_a_writer_reads_its_own_write_through_the_same_gateway() -> None:
    own = {"client": 1, "through": HERE}
    assert kinds(read(1, 20.1, **own)) == [Kind.OWN_WRITE]
    assert kinds(read(1, 20.1, client=1)) == []
    assert kinds(read(1, 20.1, client=1, through=Through(0, 2))) == []


def test_a_held_back_event_excuses_only_a_write_that_nothing_else_tells_of() -> None:
    held = Window("held", start=19.0, mended=25.0, end=26.0, holds_events=True)
    direct = (write(1, 10.0), write(2, 20.0, through=None))
    assert kinds(read(1, 27.9), windows=(held,), writes=direct) == []
    assert kinds(read(1, 28.1), windows=(held,), writes=direct) == [Kind.TWO_SECONDS]
    assert kinds(read(1, 27.9), windows=(held,)) == [Kind.TWO_SECONDS]
    cut_off = dataclasses.replace(held, cut_off=frozenset({0}))
    assert kinds(read(1, 27.9), windows=(cut_off,)) == []
    assert kinds(read(1, 27.9, need="002"), windows=(cut_off,)) == [Kind.TOKEN]


def test_a_failed_read_is_excused_by_its_own_gateway_alone() -> None:
    failed = read(0, 20.0, seen=None, failure="503")
    killed = Window("killed", start=19.0, mended=25.0, end=25.0, unreachable=frozenset({1}))
    assert kinds(failed) == [Kind.ERROR]
    assert kinds(failed, windows=(killed,)) == []
    assert kinds(dataclasses.replace(failed, through=HERE), windows=(killed,)) == [Kind.ERROR]


@pytest.mark.parametrize("outcome", ["l1", "stale"])
def test_an_old_answer_marked_stale_is_excused_while_its_source_is_away(outcome: str) -> None:
    away = Window("away", start=21.0, mended=25.0, end=25.0, searchless=True)
    old = read(1, 24.0, what=What.SEARCH, outcome=outcome)
    assert kinds(old, windows=(away,)) == ([] if outcome == "stale" else [Kind.TWO_SECONDS])


@pytest.mark.parametrize("what", [What.NEWEST, What.UPDATED])
def test_a_list_may_lack_a_ticket_only_beyond_its_end(what: What) -> None:
    listed = {"what": what, "ticket": ""}
    assert kinds(read(2, 30.0, **listed)) == []
    assert kinds(read(1, 30.0, **listed)) == [Kind.TWO_SECONDS]
    assert kinds(read(2, 30.0, **listed, seen=Seen())) == [Kind.TWO_SECONDS]
    beyond, before = (25.0, 0.5) if what is What.UPDATED else (5.0, 0.5)
    assert kinds(read(2, 30.0, **listed, seen=Seen(last=beyond))) == []
    assert kinds(read(2, 30.0, **listed, seen=Seen(last=before))) == [Kind.TWO_SECONDS]


def test_comments_and_search_results_are_judged_by_what_they_show() -> None:
    commented = (write(1, 10.0), write(2, 20.0, title=None, comment="c"))
    comments = {"what": What.COMMENTS}
    assert kinds(read(0, 30.0, **comments, seen=Seen(comments=frozenset("c"))), writes=commented) == []
    assert kinds(read(0, 30.0, **comments, seen=Seen()), writes=commented) == [Kind.TWO_SECONDS]
    found = {"what": What.SEARCH}
    assert kinds(read(0, 30.0, **found, seen=Seen(titles={"t": "zz revision 1"})), writes=commented) == []
    assert kinds(read(0, 30.0, **found, seen=Seen(titles={"t": "zz revision 1"}))) == [Kind.TWO_SECONDS]


def test_a_version_with_a_title_it_never_had_is_found() -> None:
    assert kinds(read(2, 20.1, seen=Seen({"t": 2}, {"t": "zz revision 1"}))) == [Kind.CONTENT]


def test_staleness_is_counted_from_the_first_write_that_is_missing() -> None:
    history = History([write(1, 10.0), write(2, 20.0), write(3, 21.0)], [read(1, 21.5), read(3, 21.5, outcome="miss")])
    assert check(history).staleness == {"l1": [1.5], "miss": [0.0]}
