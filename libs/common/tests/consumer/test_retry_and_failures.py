"""When to try again, when to stop, and what may be told of a failure: pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carebus_common.consumer import DeadLetter, FailureLimits, RetryPolicy
from carebus_common.consumer.failure import describe
from carebus_common.consumer.failures import FailureWindow

from .conftest import event

NOW = datetime(2026, 11, 25, 8, 0, tzinfo=UTC)
FAR = NOW + timedelta(days=1)


def seconds_until(due: datetime | None) -> float:
    assert due is not None
    return (due - NOW).total_seconds()


def test_retries_come_after_two_four_and_eight_seconds_and_then_no_more() -> None:
    policy = RetryPolicy(jitter=0)
    assert [seconds_until(policy.next_try(n, FAR, NOW)) for n in (1, 2, 3)] == [2, 4, 8]
    assert policy.next_try(4, FAR, NOW) is None


def test_jitter_only_shortens_the_wait() -> None:
    policy = RetryPolicy(jitter=0.5)
    assert seconds_until(policy.next_try(1, FAR, NOW, draw=lambda: 0.0)) == 2
    assert seconds_until(policy.next_try(1, FAR, NOW, draw=lambda: 0.999999)) == pytest.approx(1, abs=0.01)


def test_no_retry_comes_after_the_deadline_and_none_waits_longer_than_the_longest() -> None:
    assert RetryPolicy(jitter=0).next_try(1, NOW + timedelta(seconds=1), NOW) is None
    assert seconds_until(RetryPolicy(retries=99, jitter=0).next_try(60, FAR, NOW)) == 300


def test_a_hundred_failures_in_a_row_trip_and_one_success_between_does_not() -> None:
    window = FailureWindow(FailureLimits())
    window.add(True, 99)
    assert window.tripped is None
    window.add(False)
    window.add(True, 99)
    assert window.tripped is None
    window.add(True)
    assert window.tripped == "100 events in a row failed"


def test_more_than_five_percent_of_the_last_ten_thousand_trip_and_old_failures_are_forgotten() -> None:
    window = FailureWindow(FailureLimits())
    told: list[str | None] = []
    for _ in range(500):
        window.add(True)
        window.add(False, 19)
    told.append(window.tripped)
    window.add(True)
    told.append(window.tripped)
    window.add(False, 12_000)
    told.append(window.tripped)
    assert told == [None, "501 of the last 10000 events failed", None]
    assert window.failures == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 700)), max_size=60))
def test_a_window_survives_being_stored_and_never_counts_more_failures_than_there_were(
    runs: list[tuple[bool, int]],
) -> None:
    limits = FailureLimits(window=2000, consecutive=10**9)
    window = FailureWindow(limits)
    window.add_all(runs)
    outcomes = [failed for failed, count in runs for _ in range(count)]
    # Buckets of a twentieth: what is remembered is within one bucket of the truth.
    assert sum(outcomes[-2000:]) <= window.failures <= sum(outcomes[-2100:])
    again = FailureWindow.from_document(limits, window.document())
    assert again == window


def test_what_an_error_says_is_told_only_if_it_is_ours_and_without_the_event() -> None:
    named = event("patient-77", ward="ICU-9", name="Marie Tremblay", age=83, nested={"deep": ["secret"]})
    foreign = describe(ValueError("Marie Tremblay"), named, "g")
    assert foreign.message == ""
    ours = describe(DeadLetter("patient-77 Marie Tremblay ICU-9 secret is unknown\nhere"), named, "g")
    assert ours.message == "… … … … is unknown\\nhere".replace("…", "\\u2026")


def test_failures_of_one_cause_have_one_fingerprint_and_others_have_another() -> None:
    def fail(message: str) -> Exception:
        try:
            raise DeadLetter(message)
        except DeadLetter as error:
            return error

    first, second = (describe(fail(str(uuid4())), event(str(uuid4())), "g") for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert len(first.fingerprint) == 12
    others: list[Any] = [
        describe(fail("x"), event(), "another group"),
        describe(ValueError("x"), event(), "g"),
        describe(DeadLetter("raised elsewhere"), event(), "g"),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_the_causes_are_told_outermost_first() -> None:
    try:
        try:
            raise KeyError("patient")
        except KeyError as error:
            raise DeadLetter("no such ward") from error
    except DeadLetter as error:
        failure = describe(error, event(), "g")
    assert [name.rpartition(".")[2] for name, _ in failure.causes] == ["DeadLetter", "KeyError"]
    assert all("test_retry_and_failures.py" in where for _, where in failure.causes)
