"""Circuit breakers and the budget of retries, with a clock that is set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.upstreams.breakers import (
    IN_A_ROW,
    OPEN_SECONDS,
    RETRIES_AT_LEAST,
    RETRY_SHARE,
    WINDOW_REQUESTS,
    WINDOW_SECONDS,
    Breaker,
    Circuit,
    RetryBudget,
)


def state(breaker: Breaker) -> Circuit:
    return breaker.circuit


def test_failures_in_a_row_open_it_and_one_success_between_does_not() -> None:
    breaker = Breaker()
    for _ in range(3):
        for _ in range(IN_A_ROW - 1):
            breaker.failed(1.0)
        breaker.succeeded(1.0)
    assert state(breaker) is Circuit.CLOSED
    for _ in range(IN_A_ROW):
        assert state(breaker) is Circuit.CLOSED
        breaker.failed(1.0)
    assert state(breaker) is Circuit.OPEN


def test_half_of_enough_requests_in_a_window_open_it() -> None:
    breaker = Breaker()
    for number in range(WINDOW_REQUESTS - 1):
        breaker.failed(1.0) if number % 2 else breaker.succeeded(1.0)
    assert state(breaker) is Circuit.CLOSED
    breaker.failed(1.0)
    assert state(breaker) is Circuit.OPEN


def test_failures_of_a_window_before_do_not_count() -> None:
    breaker = Breaker()
    for second in (100.0, 100.0 + WINDOW_SECONDS):
        for number in range(WINDOW_REQUESTS - 2):
            breaker.failed(second) if number % 2 else breaker.succeeded(second)
    assert state(breaker) is Circuit.CLOSED


def test_it_rests_is_tried_once_and_closes_on_success() -> None:
    told: list[Circuit] = []
    breaker = Breaker(lambda circuit, _reason: told.append(circuit))
    breaker.open(10.0, "refused")
    breaker.rested(10.0 + OPEN_SECONDS - 0.1)
    assert state(breaker) is Circuit.OPEN
    breaker.rested(10.0 + OPEN_SECONDS)
    assert state(breaker) is Circuit.HALF_OPEN
    breaker.trying = True
    breaker.succeeded(13.0, trial=True)
    assert not breaker.trying
    assert told == [Circuit.OPEN, Circuit.HALF_OPEN, Circuit.CLOSED]
    for _ in range(IN_A_ROW - 1):
        breaker.failed(13.0)
    assert state(breaker) is Circuit.CLOSED, "it begins anew"


def test_a_failed_trial_opens_it_for_as_long_again() -> None:
    breaker = Breaker()
    breaker.open(10.0, "refused")
    breaker.rested(12.0)
    breaker.trying = True
    breaker.failed(20.0, trial=True)
    assert (breaker.circuit, breaker.trying) == (Circuit.OPEN, False)
    breaker.rested(21.0)
    assert state(breaker) is Circuit.OPEN
    breaker.rested(22.0)
    assert state(breaker) is Circuit.HALF_OPEN


def test_a_request_from_before_it_opened_does_not_close_it() -> None:
    breaker = Breaker()
    breaker.open(10.0, "refused")
    breaker.succeeded(10.5)
    assert state(breaker) is Circuit.OPEN


@given(st.lists(st.tuples(st.sampled_from(["ask", "retry"]), st.floats(0, 3)), max_size=300))
def test_no_ten_seconds_have_more_retries_than_the_budget(steps: list[tuple[str, float]]) -> None:
    """Against a model that remembers every time; it counts whole seconds, as the budget does."""
    budget = RetryBudget()
    now = 1000.0
    asked: list[int] = []
    retried: list[int] = []
    for step, pause in steps:
        now += pause
        first = int(now) - 9
        if step == "ask":
            budget.asked(now)
            asked.append(int(now))
            continue
        made = sum(second >= first for second in retried)
        allowed = max(RETRIES_AT_LEAST, RETRY_SHARE * sum(second >= first for second in asked))
        assert budget.allows(now) == (made < allowed)
        if made < allowed:
            retried.append(int(now))


@pytest.mark.parametrize(("requests", "retries"), [(0, 10), (50, 10), (1000, 200)])
def test_a_fifth_of_the_requests_may_be_sent_again(requests: int, retries: int) -> None:
    budget = RetryBudget()
    for _ in range(requests):
        budget.asked(50.0)
    assert sum(budget.allows(51.0) for _ in range(1000)) == retries
    assert budget.allows(61.0), "ten seconds later there are some again"


@pytest.mark.parametrize(("unreachable", "circuit"), [(True, Circuit.CLOSED), (False, Circuit.OPEN)])
def test_an_instance_that_was_only_unreachable_is_back_when_it_answers(*, unreachable: bool, circuit: Circuit) -> None:
    """Was it left out before it had started, the first requests find it well, and not one of them a trial."""
    breaker = Breaker()
    breaker.open(0.0, "left out", unreachable=unreachable)
    breaker.rested(0.1)
    assert breaker.circuit is circuit
