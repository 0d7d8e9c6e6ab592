from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from carebus_gateway.breaker import Breaker, Open, Permit, State


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures=3, rest=timedelta(seconds=5), clock=clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.admit().failed()


def test_it_opens_after_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert breaker.state.value == "closed"

    fail(breaker, 1)

    assert breaker.state.value == "open"
    with pytest.raises(Open):
        breaker.admit()


def test_a_success_between_failures_starts_the_count_again(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.admit().succeeded()
    fail(breaker, 2)

    assert breaker.state.value == "closed"


def test_an_abandoned_attempt_neither_counts_nor_forgives(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.admit().abandoned()
    fail(breaker, 1)

    assert breaker.state.value == "open"


def test_while_open_it_says_how_long_to_wait(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 3.5

    with pytest.raises(Open) as refused:
        breaker.admit()

    assert refused.value.retry_after == timedelta(seconds=1.5)


def test_after_its_rest_it_lets_one_probe_through(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 5

    breaker.admit()

    assert breaker.state.value == "half-open"
    with pytest.raises(Open):
        breaker.admit()


def test_a_probe_that_succeeds_closes_it(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 5
    breaker.admit().succeeded()

    assert breaker.state.value == "closed"
    fail(breaker, 2)
    assert breaker.state.value == "closed"


def test_a_probe_that_fails_opens_it_for_a_full_rest(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 5
    breaker.admit().failed()
    clock.now += 4.9

    with pytest.raises(Open):
        breaker.admit()
    clock.now += 0.1
    breaker.admit()


def test_an_abandoned_probe_makes_room_for_the_next(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 5
    breaker.admit().abandoned()

    breaker.admit().succeeded()

    assert breaker.state.value == "closed"


def test_an_attempt_that_began_before_it_opened_says_nothing_of_now(breaker: Breaker, clock: Clock) -> None:
    slow_success, slow_failure = breaker.admit(), breaker.admit()
    fail(breaker, 3)
    clock.now += 5
    probe = breaker.admit()

    slow_success.succeeded()
    slow_failure.failed()

    assert breaker.state.value == "half-open"
    probe.succeeded()
    assert breaker.state.value == "closed"


def test_only_the_first_word_on_an_attempt_counts(breaker: Breaker) -> None:
    permit = breaker.admit()
    permit.succeeded()
    for _ in range(5):
        permit.failed()

    assert breaker.state.value == "closed"


def test_every_change_of_state_is_told(clock: Clock) -> None:
    told: list[State] = []
    breaker = Breaker(failures=1, rest=timedelta(seconds=5), clock=clock, on_change=told.append)
    fail(breaker, 1)
    clock.now += 5
    breaker.admit().failed()
    clock.now += 5
    breaker.admit().succeeded()

    assert told == [State.OPEN, State.HALF_OPEN, State.OPEN, State.HALF_OPEN, State.CLOSED]


class Whatever(RuleBasedStateMachine):
    """Attempts that begin and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = Breaker(failures=3, rest=timedelta(seconds=5), clock=self.clock)
        self.permits: list[Permit] = []
        self.refused_at: float | None = None

    @rule()
    def begin(self) -> None:
        try:
            self.permits.append(self.breaker.admit())
        except Open as error:
            assert timedelta() < error.retry_after <= timedelta(seconds=5)

    @precondition(lambda self: self.permits)
    @rule(data=st.data(), end=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def end(self, data: Any, end: str) -> None:
        permit = self.permits.pop(data.draw(st.integers(0, len(self.permits) - 1)))
        getattr(permit, end)()

    @rule(seconds=st.floats(0.1, 10))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def it_never_stays_shut_for_ever(self) -> None:
        """Once its rest is over and nothing is under way, somebody is let through."""
        if not self.permits:
            self.clock.now += 5
            self.breaker.admit().abandoned()


TestWhatever = Whatever.TestCase
