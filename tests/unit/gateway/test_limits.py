"""Rate limits: the algorithm against a token bucket, and what several processes that share let through together."""

import asyncio
import uuid
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from libs.common.identity import Principal
from libs.common.models import Role
from libs.common.problems import Problem
from services.gateway.limits import limits as limits_module
from services.gateway.limits.gcra import NO_LIMIT, Bucket, Policy, Rate, parse_rate
from services.gateway.limits.limited import network_of
from services.gateway.limits.limits import Buckets, Limits, Rates

TICK = Fraction(1, 16)
# 60 seconds a minute divided by these is exact in binary, so the model and the code agree to the last request.
EXACT_RATES = st.sampled_from([15, 30, 60, 120, 240, 960])


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SharedDebts:
    """The script in Redis, on the tests' clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.paid_at: dict[str, float] = {}
        self.calls = 0
        self.away = False

    async def __call__(self, *, keys: Sequence[str], args: Sequence[int]) -> list[int]:
        self.calls += 1
        if self.away:
            raise RedisConnectionError
        now = self.clock()
        for key, microseconds in zip(keys, args, strict=True):
            self.paid_at[key] = max(self.paid_at.get(key, now), now) + microseconds / 1_000_000
        return [round(max(0.0, self.paid_at[key] - now) * 1_000_000) for key in keys]


def rates(**changes: Rate) -> Rates:
    off = dict.fromkeys(("credential", "organization", "address", "sign_in", "account"), NO_LIMIT)
    return Rates(**(off | changes))


def processes(number: int, **changes: Rate) -> tuple[list[Limits], Clock, SharedDebts]:
    """Limits as so many processes have them, which share by `exchange`."""
    clock = Clock()
    shared = SharedDebts(clock)
    made = []
    for _ in range(number):
        limits = Limits(Redis(), rates(**changes), clock=clock)
        limits._add = shared  # type: ignore[assignment]
        limits._alone = False
        made.append(limits)
    return made, clock, shared


def principal(organization_id: uuid.UUID | None = None) -> Principal:
    return Principal(
        organization_id=organization_id or uuid.uuid4(),
        user_id=uuid.uuid4(),
        name="Ann",
        role=Role.ADMIN,
        credential="api_key",
        credential_id=uuid.uuid4().hex,
    )


def take_all(limits: Limits, buckets: Buckets, most: int = 100_000) -> int:
    """How many requests pass without Redis being asked."""
    taken = 0
    while taken < most and limits.take(buckets) is not None:
        taken += 1
    return taken


def refused(limits: Limits, buckets: Buckets, cost: float = 1.0) -> Problem:
    with pytest.raises(Problem) as caught:
        limits.refuse(buckets, cost)
    assert (caught.value.status, caught.value.code) == (429, "rate_limited")
    return caught.value


@given(
    per_minute=EXACT_RATES,
    burst=st.integers(1, 40),
    requests=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 12)), max_size=80),
)
def test_a_request_passes_exactly_when_a_token_bucket_lets_it(
    per_minute: int, burst: int, requests: list[tuple[int, int]]
) -> None:
    clock = Clock()
    limits = Limits(Redis(), rates(address=Rate(per_minute, burst)), clock=clock)
    buckets = limits.of_address("192.0.2.1")
    tokens = Fraction(burst)
    for pause, cost in requests:
        clock.now += float(pause * TICK)
        tokens = min(Fraction(burst), tokens + pause * TICK * per_minute / 60)
        told = limits.take(buckets, cost)
        assert (told is not None) == (tokens >= cost)
        if told is not None:
            tokens -= cost
            assert told.remaining == int(tokens)
        elif cost <= burst:
            missing = (cost - tokens) * 60 / per_minute
            assert int(refused(limits, buckets, cost).headers["Retry-After"]) == max(1, -(-missing // 1))


@settings(deadline=None)
@given(
    burst=st.integers(1, 60),
    number=st.integers(1, 5),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(0, 4), st.integers(1, 40)),
            st.tuples(st.just("exchange"), st.integers(0, 4), st.just(0)),
            st.tuples(st.just("pause"), st.just(0), st.integers(1, 60)),
        ),
        max_size=120,
    ),
)
def test_processes_together_let_through_what_is_stated_however_they_share(
    burst: int, number: int, steps: list[tuple[str, int, int]]
) -> None:
    each, clock, _shared = processes(number, address=Rate(240, burst))
    passed: list[float] = []
    for step, process, amount in steps:
        limits = each[process % number]
        if step == "take":
            passed += [clock.now] * take_all(limits, limits.of_address("192.0.2.1"), amount)
        elif step == "exchange":
            asyncio.run(limits._exchange())
        else:
            clock.now += amount / 16
    overshoot = (number - 1) * max(1, burst // 10)
    for first, since in enumerate(passed):
        assert len(passed) - first <= burst + (passed[-1] - since) * 4 + overshoot


def test_a_client_of_several_processes_is_refused_by_all_once_they_have_shared() -> None:
    each, _clock, _shared = processes(4, credential=Rate(60, 100))
    who = principal()
    passed = 0
    for _round in range(20):
        for limits in each:
            passed += take_all(limits, limits.of_principal(who))
            asyncio.run(limits._exchange())
    assert 100 <= passed <= 100 + 3 * 10
    for limits in each:
        refused(limits, limits.of_principal(who))


def test_what_one_process_took_shows_in_what_another_tells() -> None:
    (first, second), _clock, _shared = processes(2, credential=Rate(60, 100))
    who = principal()
    assert take_all(first, first.of_principal(who)) == 10, "then Redis has to be asked"
    asyncio.run(first._exchange())
    second.take(second.of_principal(who))
    asyncio.run(second._exchange())
    told = second.take(second.of_principal(who))
    assert told is not None
    assert told.headers == {
        "RateLimit-Policy": '"credential";q=100;w=100',
        "RateLimit": '"credential";r=88;t=12',
    }
    assert told.lines == b'RateLimit-Policy: "credential";q=100;w=100\r\nRateLimit: "credential";r=88;t=12\r\n'


def test_the_tightest_of_two_limits_is_told_and_both_policies() -> None:
    (limits,), _clock, _shared = processes(1, credential=Rate(60, 100), organization=Rate(120, 100))
    organization_id = uuid.uuid4()
    one, other = principal(organization_id), principal(organization_id)
    policies = '"credential";q=100;w=100, "organization";q=100;w=50'
    first = limits.take(limits.of_principal(one))
    second = limits.take(limits.of_principal(other))
    assert first is not None
    assert second is not None
    assert first.headers == {"RateLimit-Policy": policies, "RateLimit": '"credential";r=99;t=1'}
    assert second.headers == {"RateLimit-Policy": policies, "RateLimit": '"organization";r=98;t=1'}


def test_a_request_that_one_limit_refuses_takes_nothing_from_the_other() -> None:
    (limits,), _clock, _shared = processes(1, credential=Rate(60, 100), organization=Rate(60, 5))
    limits._alone = True
    organization_id = uuid.uuid4()
    one, other = principal(organization_id), principal(organization_id)
    assert take_all(limits, limits.of_principal(one)) == 5
    assert limits.take(limits.of_principal(other)) is None
    assert limits.of_credential(other)[0].remaining(limits._clock()) == 100
    assert refused(limits, limits.of_principal(other)).headers["RateLimit"] == '"organization";r=0;t=5'


def test_one_client_does_not_use_up_what_another_has() -> None:
    (limits,), _clock, _shared = processes(1, credential=Rate(60, 10), organization=Rate(60, 1000))
    limits._alone = True
    organization_id = uuid.uuid4()
    assert take_all(limits, limits.of_principal(principal(organization_id))) == 10
    assert take_all(limits, limits.of_principal(principal(organization_id))) == 10


def test_a_refused_client_may_come_again_when_it_was_told_to_and_no_second_earlier() -> None:
    (limits,), clock, _shared = processes(1, address=Rate(12, 3))
    limits._alone = True
    buckets = limits.of_address("192.0.2.1")
    assert take_all(limits, buckets) == 3
    problem = refused(limits, buckets)
    assert problem.headers["Retry-After"] == "5"
    assert problem.headers["Cache-Control"] == "no-store"
    clock.now += 4
    assert limits.take(buckets) is None
    clock.now += 1
    assert limits.take(buckets) is not None


async def test_a_request_beyond_what_may_be_hidden_waits_until_it_is_shared() -> None:
    (limits,), _clock, shared = processes(1, credential=Rate(60, 100))
    buckets = limits.of_principal(principal())
    running = asyncio.create_task(limits.run())
    for _ in range(100):
        assert await limits.admit(buckets)
    assert shared.calls >= 9
    with pytest.raises(Problem):
        await limits.admit(buckets)
    running.cancel()
    await asyncio.wait([running], timeout=30)
    assert running.cancelled()


async def test_whoever_waits_when_sharing_ends_is_let_go() -> None:
    (limits,), _clock, shared = processes(1, credential=Rate(60, 100))
    shared.away = True
    buckets = limits.of_principal(principal())
    take_all(limits, buckets)
    waiting = asyncio.create_task(limits.admit(buckets))
    await asyncio.sleep(0)
    assert not waiting.done()
    running = asyncio.create_task(limits.run())
    async with asyncio.timeout(30):
        await waiting
    running.cancel()
    await asyncio.wait([running], timeout=30)


async def test_whoever_waits_when_the_process_stops_sharing_is_let_go() -> None:
    (limits,), _clock, shared = processes(1, credential=Rate(60, 100))
    asked = asyncio.Event()

    async def never(**_call: Any) -> list[int]:
        asked.set()
        await asyncio.Event().wait()
        return []

    limits._add = never  # type: ignore[assignment]
    buckets = limits.of_principal(principal())
    take_all(limits, buckets)
    running = asyncio.create_task(limits.run())
    async with asyncio.timeout(30):
        await asked.wait()
        waiting = asyncio.create_task(limits.admit(buckets))
        await asyncio.sleep(0)
        running.cancel()
        await waiting
    assert shared.calls == 0


def test_sharing_begins_before_anybody_has_to_wait() -> None:
    (limits,), _clock, _shared = processes(1, credential=Rate(60, 100))
    buckets = limits.of_principal(principal())
    assert take_all(limits, buckets, 4) == 4
    assert not limits._wake.is_set()
    assert take_all(limits, buckets, 2) == 2
    assert limits._wake.is_set()


async def test_a_charge_is_shared_as_well() -> None:
    (limits,), clock, shared = processes(1, credential=Rate(60, 100))
    buckets = limits.of_principal(principal())
    limits.charge(buckets, 50)
    assert limits._wake.is_set()
    await limits._exchange()
    assert shared.paid_at[buckets[0].key] == pytest.approx(clock() + 50)


async def test_without_redis_a_process_limits_by_itself_and_asks_nobody_to_wait() -> None:
    (limits,), _clock, shared = processes(1, credential=Rate(60, 100))
    shared.away = True
    buckets = limits.of_principal(principal())
    assert take_all(limits, buckets) == 10
    await limits._exchange()
    assert take_all(limits, buckets) == 90
    refused(limits, buckets)


async def test_what_was_taken_without_redis_and_is_paid_for_is_not_held_against_the_client() -> None:
    (limits, other), clock, shared = processes(2, credential=Rate(60, 100))
    shared.away = True
    who = principal()
    limits.take(limits.of_principal(who))
    await limits._exchange()
    for _ in range(300):
        clock.now += 1
        assert limits.take(limits.of_principal(who)) is not None
    clock.now += 1
    assert take_all(limits, limits.of_principal(who), 30) == 30
    shared.away = False
    await limits._exchange()
    other.take(other.of_principal(who))
    await other._exchange()
    assert other.of_principal(who)[0].remaining(clock()) == 100 - 30 - 1


async def test_what_could_not_be_shared_is_shared_later() -> None:
    (limits,), clock, shared = processes(1, credential=Rate(60, 100))
    shared.away = True
    buckets = limits.of_principal(principal())
    take_all(limits, buckets)
    await limits._exchange()
    shared.away = False
    await limits._exchange()
    assert shared.paid_at[buckets[0].key] == pytest.approx(clock() + 10)
    assert not limits._alone


async def test_what_is_taken_while_it_is_shared_is_counted_once() -> None:
    (limits,), clock, shared = processes(1, credential=Rate(60, 100))
    buckets = limits.of_principal(principal())
    limits.take(buckets)

    async def slowly(**call: Any) -> list[int]:
        limits.take(buckets)
        return await shared(**call)

    limits._add = slowly  # type: ignore[assignment]
    await limits._exchange()
    assert buckets[0].remaining(clock()) == 98
    limits._add = shared  # type: ignore[assignment]
    await limits._exchange()
    assert buckets[0].remaining(clock()) == 98
    assert shared.paid_at[buckets[0].key] == pytest.approx(clock() + 2)


async def test_what_is_taken_while_sharing_fails_is_shared_once() -> None:
    (limits,), clock, shared = processes(1, credential=Rate(60, 100))
    buckets = limits.of_principal(principal())
    limits.take(buckets)

    async def fail(**_call: Any) -> list[int]:
        limits.take(buckets)
        raise RedisConnectionError

    limits._add = fail  # type: ignore[assignment]
    await limits._exchange()
    limits._add = shared  # type: ignore[assignment]
    await limits._exchange()
    assert shared.paid_at[buckets[0].key] == pytest.approx(clock() + 2)


async def test_a_client_that_was_forgotten_still_counts() -> None:
    (limits,), _clock, shared = processes(1, credential=Rate(60, 100))
    who = principal()
    limits.take(limits.of_principal(who))
    for _ in range(limits_module._REMEMBERED + 1):
        limits.of_principal(principal())
    assert len(limits._buckets) <= limits_module._REMEMBERED
    assert limits.of_principal(who)[0].unshared == 0, "another bucket"
    await limits._exchange()
    assert len(shared.paid_at) == 1


async def test_an_outage_does_not_gather_clients_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "_REMEMBERED", 50)
    (limits,), _clock, shared = processes(1, credential=Rate(60, 100))
    shared.away = True
    for _ in range(5):
        for _client in range(40):
            limits.take(limits.of_principal(principal()))
        await limits._exchange()
    assert len(limits._dirty) <= 50


def test_a_charge_goes_beyond_the_limit_and_can_be_given_back() -> None:
    (limits,), clock, _shared = processes(1, credential=Rate(60, 10))
    buckets = limits.of_principal(principal())
    limits.charge(buckets, 15)
    assert refused(limits, buckets).headers["Retry-After"] == "6"
    limits.charge(buckets, -15)
    assert buckets[0].remaining(clock()) == 10


async def test_a_request_that_costs_more_than_there_ever_is_takes_all_there_is() -> None:
    (limits,), clock, _shared = processes(1, credential=Rate(60, 10))
    buckets = limits.of_principal(principal())
    await limits.admit(buckets, 50)
    assert buckets[0].remaining(clock()) == 0


def test_0_is_no_limit_and_nothing_is_told() -> None:
    (limits,), _clock, _shared = processes(1)
    buckets = limits.of_principal(principal())
    assert buckets == ()
    assert take_all(limits, buckets, 5000) == 5000
    told = limits.take(buckets)
    assert told is not None
    assert (told.headers, told.lines) == ({}, b"")


def test_an_account_is_the_same_in_any_case_and_its_name_is_not_kept() -> None:
    (limits,), _clock, _shared = processes(1, account=Rate(60, 10))
    one = limits.of_sign_in("192.0.2.1", "acme", "ann@acme.example")
    assert one == limits.of_sign_in("192.0.2.2", "acme", "Ann@Acme.example")
    assert one != limits.of_sign_in("192.0.2.1", "other", "ann@acme.example")
    assert "ann" not in one[0].key


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_an_address_stands_for_what_one_customer_has(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize("text", ["6000/1000", "1/1", "100000000/10000000", "0"])
def test_a_rate_is_read_and_shown_as_it_was_written(text: str) -> None:
    assert str(parse_rate(text)) == text


@pytest.mark.parametrize(
    "text", ["", "1", "0/1", "1/0", "-1/5", "5/-1", "1.5/3", "100000001/1", "1/10000001", "1/1/1", "a/b", " 1/1", "٣/٣"]
)
def test_another_text_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="expected 0, or requests a minute"):
        parse_rate(text)


def test_what_is_told_of_a_large_burst_is_rounded_down_and_made_once() -> None:
    policy = Policy("credential", Rate(60, 1_000_000))
    assert policy.told(999_999).headers["RateLimit"] == '"credential";r=999000;t=1000'
    assert policy.told(999_998) is policy.told(999_000)
    for remaining in range(0, 1_000_001, 500):
        policy.told(remaining)
    assert len(policy._told) == 1001


def test_seconds_are_told_rounded_up() -> None:
    policy = Policy("credential", Rate(7, 3))
    told = {"RateLimit-Policy": '"credential";q=3;w=26', "RateLimit": '"credential";r=2;t=9'}
    assert policy.told(2).headers == told


def test_a_bucket_is_full_after_its_window() -> None:
    bucket = Bucket(Policy("credential", Rate(600, 30)), "key")
    bucket.take(30, 1000.0)
    assert bucket.remaining(1000.0) == 0
    assert bucket.remaining(1002.999) == 29
    assert bucket.remaining(1003.0) == 30
