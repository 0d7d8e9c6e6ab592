from datetime import UTC, datetime, timedelta

import pytest

from carebus_cli.retry import RetryPolicy, parse_retry_after

POLICY = RetryPolicy(give_up_after=timedelta(seconds=10))


def test_retry_after_is_waited_in_full() -> None:
    for _ in range(50):
        seconds = POLICY.wait(1, 0.0, retry_after=3)
        assert seconds is not None
        assert 3 <= seconds <= 3.3


def test_without_retry_after_the_wait_doubles_up_to_the_longest() -> None:
    for attempt, longest in ((1, 0.2), (2, 0.4), (3, 0.8), (20, 5.0)):
        seconds = POLICY.wait(attempt, 0.0, None)
        assert seconds is not None
        assert longest / 2 <= seconds <= longest


def test_a_wait_that_would_outlast_the_limit_is_not_begun() -> None:
    assert POLICY.wait(1, 0.0, retry_after=11) is None
    assert POLICY.wait(4, 9.9, None) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("2", 2.0),
        ("0", 0.0),
        ("-5", 0.0),
        ("Mon, 23 Nov 2026 12:00:30 GMT", 30.0),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        (None, None),
    ],
)
def test_retry_after_is_read_in_either_form(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, datetime(2026, 11, 23, 12, tzinfo=UTC)) == seconds
