"""Whose turn it is among a service's instances, and who waits, without a network."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import pytest
from prometheus_client import REGISTRY

from libs.common.problems import Problem
from services.gateway.upstreams import instances as module
from services.gateway.upstreams.instances import Bounds, Instances, Outcome, Turn, parse_addresses
from tests.support.tickets import eventually

ADDRESSES = ["http://a", "http://b", "http://c"]
ROOMY = Bounds()


def make(addresses: Sequence[str] = ADDRESSES, bounds: Bounds = ROOMY, **more: Any) -> Instances:
    return Instances("tickets", addresses, bounds, **more)


def take(instances: Instances) -> Turn:
    turn = instances.take()
    assert turn is not None
    return turn


def finish(instances: Instances, outcome: Outcome) -> str:
    """One request; which instance had it."""
    turn = take(instances)
    instances.give_back(turn, outcome)
    return turn.instance.name


def refuse(instances: Instances, *names: str) -> None:
    """Let the instances of these names refuse a connection."""
    for instance in instances._all:
        if instance.name in names:
            instances.give_back(Turn(instance), Outcome.REFUSED)


def well_again(instances: Instances, name: str) -> None:
    """A probe finds it well, and it has rested."""
    (breaker,) = [instance.breaker for instance in instances._all if instance.name == name]
    breaker.rested(breaker._opened + 60)


def problem(raised: pytest.ExceptionInfo[Problem]) -> tuple[int, str]:
    return raised.value.status, raised.value.code


def test_instances_take_turns() -> None:
    instances = make()
    assert [finish(instances, Outcome.ANSWERED) for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_one_that_refuses_is_left_out_at_once_and_returns_by_one_trial() -> None:
    instances = make()
    refuse(instances, "b")
    assert Counter(finish(instances, Outcome.ANSWERED) for _ in range(6)) == {"a": 3, "c": 3}
    well_again(instances, "b")
    turns = [take(instances) for _ in range(6)]
    assert [turn.instance.name for turn in turns].count("b") == 1, "one request tries it"
    for turn in turns:
        instances.give_back(turn, Outcome.ANSWERED)
    assert Counter(finish(instances, Outcome.ANSWERED) for _ in range(6)) == {"a": 2, "b": 2, "c": 2}


def test_a_trial_that_nobody_waited_for_is_made_again() -> None:
    instances = make(["http://a", "http://b"])
    refuse(instances, "b")
    well_again(instances, "b")
    trial = next(turn for turn in (take(instances), take(instances)) if turn.trial)
    instances.give_back(trial, Outcome.ABANDONED)
    assert "b" in {finish(instances, Outcome.ANSWERED) for _ in range(2)}


def test_when_all_are_out_each_is_tried_by_one_request_at_a_time() -> None:
    instances = make()
    refuse(instances, "a", "b", "c")
    turns = [take(instances) for _ in range(3)]
    assert {turn.instance.name for turn in turns} == {"a", "b", "c"}
    assert instances.take() is None
    instances.give_back(turns[0], Outcome.REFUSED)
    assert take(instances).instance is turns[0].instance, "and for ever again"


async def test_when_all_are_out_nobody_waits() -> None:
    instances = make(["http://a"])
    refuse(instances, "a")
    take(instances)
    with pytest.raises(Problem) as raised:
        await instances.wait(60)
    assert problem(raised) == (503, "service_unavailable")
    assert raised.value.headers["Retry-After"]


def test_one_that_is_draining_serves_only_when_no_other_can() -> None:
    instances = make()
    instances._all[1].ready = False
    assert Counter(finish(instances, Outcome.ANSWERED) for _ in range(6)) == {"a": 3, "c": 3}
    refuse(instances, "a", "c")
    assert {finish(instances, Outcome.ANSWERED) for _ in range(3)} == {"b"}


def test_a_retry_goes_elsewhere() -> None:
    instances = make(["http://a", "http://b"])
    for _ in range(4):
        first = take(instances)
        second = instances.take(besides=first.instance)
        assert second is not None
        assert second.instance is not first.instance
    assert make(["http://a"]).take(besides=make(["http://a"])._all[0]) is not None
    alone = make(["http://a"])
    assert alone.take(besides=alone._all[0]) is None


async def test_connections_are_bounded_and_those_who_wait_are_served_in_turn() -> None:
    instances = make(["http://a", "http://b"], Bounds(connections=1, waiting=2))
    turns = [take(instances), take(instances)]
    assert instances.take() is None
    waiting = [asyncio.create_task(instances.wait(60)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Problem) as raised:
        await instances.wait(60)
    assert problem(raised) == (503, "service_unavailable")
    instances.give_back(turns[1], Outcome.ANSWERED)
    assert (await waiting[0]).instance is turns[1].instance
    assert not waiting[1].done()
    assert instances.take() is None, "nobody passes those who wait"
    instances.give_back(turns[0], Outcome.ANSWERED)
    assert (await waiting[1]).instance is turns[0].instance
    assert [instance.in_flight for instance in instances._all] == [1, 1]


async def test_who_goes_while_waiting_takes_no_turn_with_him() -> None:
    instances = make(["http://a"], Bounds(connections=1))
    turn = take(instances)
    with pytest.raises(Problem) as raised:
        await instances.wait(0.01)
    assert problem(raised) == (504, "deadline_exceeded")
    gone, late, stays = [asyncio.create_task(instances.wait(60)) for _ in range(3)]
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait({gone})
    instances.give_back(turn, Outcome.ANSWERED)  # it is given to `late`, who goes in the same moment
    late.cancel()
    await asyncio.wait({late})
    assert late.cancelled()
    assert (await stays).instance is turn.instance
    assert turn.instance.in_flight == 1


def test_one_that_is_out_rests_although_the_others_have_no_connection_left() -> None:
    instances = make(["http://a", "http://b"], Bounds(connections=1))
    refuse(instances, "a")
    take(instances)
    assert instances.take() is None


async def test_who_has_gone_counts_no_more_among_those_who_wait() -> None:
    instances = make(["http://a"], Bounds(connections=1, waiting=1))
    turn = take(instances)
    gone = asyncio.create_task(instances.wait(60))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait({gone})
    waits = asyncio.create_task(instances.wait(60))
    await asyncio.sleep(0)
    instances.give_back(turn, Outcome.ANSWERED)
    assert (await waits).instance is turn.instance


async def test_those_who_wait_are_told_when_all_instances_are_out() -> None:
    instances = make(["http://a"], Bounds(connections=2))
    first, _second = take(instances), take(instances)
    waiting = [asyncio.create_task(instances.wait(60)) for _ in range(3)]
    await asyncio.sleep(0)
    instances.give_back(first, Outcome.REFUSED)
    assert (await waiting[0]).trial
    for other in waiting[1:]:
        with pytest.raises(Problem) as raised:
            await other
        assert problem(raised) == (503, "service_unavailable")


def test_the_number_of_open_circuits_is_exported() -> None:
    instances = make()

    def exported() -> float | None:
        return REGISTRY.get_sample_value("upstream_open_circuits", {"upstream": "tickets"})

    refuse(instances, "a", "b")
    assert exported() == 2
    well_again(instances, "a")
    assert exported() == 2, "on trial is not well"
    for _ in range(2):
        finish(instances, Outcome.ANSWERED)
    assert exported() == 1


class Names:
    """What names lead to."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] | Exception = addresses

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("tickets.internal", 8081)
        if isinstance(self.addresses, Exception):
            raise self.addresses
        return self.addresses


@contextlib.asynccontextmanager
async def watched(names: Names, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Instances]:
    monkeypatch.setattr(module, "_LOOK_UP_EVERY_SECONDS", 0.01)
    instances = make(["dns+http://tickets.internal:8081", "http://fixed:1"], look_up=names)

    async def no_probe(_http: aiohttp.ClientSession, _instance: Any) -> None:
        pass

    monkeypatch.setattr(instances, "_probe", no_probe)
    nothing: Any = None
    async with instances.watched(nothing):
        yield instances


def known(instances: Instances) -> list[str]:
    return [instance.url for instance in instances._all]


async def test_a_name_is_looked_up_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names("10.0.0.2", "10.0.0.1", "fd00::1", "10.0.0.1")
    async with watched(names, monkeypatch) as instances:
        first = ["http://fixed:1", "http://10.0.0.1:8081", "http://10.0.0.2:8081", "http://[fd00::1]:8081"]
        assert known(instances) == first, "before the first request"
        refuse(instances, "10.0.0.2:8081")
        names.addresses = ["10.0.0.2", "10.0.0.3"]

        async def changed() -> bool:
            return known(instances) == ["http://fixed:1", "http://10.0.0.2:8081", "http://10.0.0.3:8081"]

        await eventually(changed)
        served = {finish(instances, Outcome.ANSWERED) for _ in range(6)}
        assert served == {"fixed:1", "10.0.0.3:8081"}, "what is known of an instance is kept"
        names.addresses = OSError("no resolver")
        await asyncio.sleep(0.05)
        assert await changed(), "a look-up that fails changes nothing"


async def test_a_gone_instance_takes_its_time_series_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names("10.9.9.9")

    def exported() -> list[str]:
        found = [sample.labels.get("instance") for metric in REGISTRY.collect() for sample in metric.samples]
        return [name for name in found if name == "10.9.9.9:8081"]

    async with watched(names, monkeypatch) as instances:
        for _ in range(2):
            finish(instances, Outcome.ANSWERED)
        assert exported()
        names.addresses = ["10.9.9.8"]

        async def gone() -> bool:
            return not exported()

        await eventually(gone)


@pytest.mark.parametrize(
    "text", ["", ",", "host:80", "ftp://host", "http://", "dns+http://host:x", "dns+http://h/path"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|[Pp]ort"):
        parse_addresses(text)


def test_addresses_are_separated_by_commas() -> None:
    told = parse_addresses("http://a:1/, https://b,dns+http://c:2")
    assert told == ("http://a:1", "https://b", "dns+http://c:2")
