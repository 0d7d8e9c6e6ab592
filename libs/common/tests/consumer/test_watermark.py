"""The low-water mark, against the plainest model of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carebus_common.consumer.watermark import LowWaterMark, WentBackwards


@given(st.data())
def test_the_position_is_the_oldest_record_not_done_or_the_one_after_the_newest(data: st.DataObject) -> None:
    mark = LowWaterMark()
    assert mark.position() is None
    waiting: list[int] = []
    newest = data.draw(st.integers(0, 10**6))
    for _ in range(data.draw(st.integers(1, 40))):
        finishes = data.draw(st.booleans())
        if waiting and finishes:
            mark.done(waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
        else:
            newest += data.draw(st.integers(1, 5))
            mark.take(newest)
            waiting.append(newest)
        assert mark.position() == (min(waiting) if waiting else newest + 1)
        assert mark.in_flight == len(waiting)


def test_memory_does_not_grow_with_the_records_that_passed() -> None:
    mark = LowWaterMark()
    for offset in range(100_000):
        mark.take(offset)
        mark.done(offset)
        if offset % 100 == 0:
            mark.position()
    assert len(mark._order) < 20_000


def test_a_record_at_or_below_one_that_was_taken_is_refused() -> None:
    mark = LowWaterMark()
    mark.take(7)
    for offset in (7, 6, 0):
        with pytest.raises(WentBackwards):
            mark.take(offset)


def test_a_record_done_twice_or_never_taken_changes_nothing() -> None:
    mark = LowWaterMark()
    mark.take(1)
    mark.done(1)
    mark.done(1)
    mark.done(99)
    assert mark.position() == 2
