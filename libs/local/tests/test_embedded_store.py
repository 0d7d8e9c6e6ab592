"""The faults of the embedded store that `carebus_local.embedded_store` mends are mended, in the version at hand."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from secantus import transactions

from carebus_local.embedded_store import mend

LIFETIME = 60.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Any:
    class Mended(transactions.TransactionRegistry):  # type: ignore[misc]
        """A class of its own: the other tests of this process see the wheel as it is."""

    mend(Mended)
    return Mended(lifetime_seconds=LIFETIME, time_func=clock)


def begin(registry: Any, session: bytes) -> Any:
    txn, error = registry.for_statement(session, None, 1, start=True)
    assert error is None
    return txn


def test_a_transaction_whose_statement_waits_does_not_stop_the_others(registry: Any, clock: Clock) -> None:
    waiting = begin(registry, b"waiting")
    clock.now += LIFETIME + 1
    held, done = threading.Event(), threading.Event()

    def run_a_statement() -> None:
        with waiting.mutex:
            held.set()
            done.wait(10)

    with ThreadPoolExecutor() as pool:
        statement = pool.submit(run_a_statement)
        assert held.wait(10)
        try:
            other = pool.submit(begin, registry, b"other")
            assert other.result(timeout=5).state is transactions.TxnState.IN_PROGRESS
        finally:
            done.set()
        statement.result()


def test_a_transaction_that_nobody_goes_on_with_expires_when_another_one_begins(registry: Any, clock: Clock) -> None:
    forgotten = begin(registry, b"forgotten")
    clock.now += LIFETIME + 1
    used = begin(registry, b"used")
    assert forgotten.state is transactions.TxnState.ABORTED
    assert used.state is transactions.TxnState.IN_PROGRESS


def test_the_oldest_of_too_many_retryable_writes_are_forgotten(registry: Any, clock: Clock) -> None:
    most = transactions._RETRYABLE_RECORD_MAX
    for number in range(most + 5):
        registry.record_retryable(b"s", number, b"", {"ok": 1.0})
    assert registry.retryable_reply(b"s", 4, b"") is None
    assert registry.retryable_reply(b"s", 5, b"") == {"ok": 1.0}
    clock.now += 3600
    assert registry.retryable_reply(b"s", most, b"") is None


def test_a_version_without_what_is_replaced_is_refused() -> None:
    class Other:
        pass

    with pytest.raises(AttributeError, match="secantusdb"):
        mend(Other)
