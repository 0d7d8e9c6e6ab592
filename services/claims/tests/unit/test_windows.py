from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

from hypothesis import given
from hypothesis import strategies as st

from carebus_claims.windows import Extent, Span, windows

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
MOMENTS = st.datetimes(timezones=st.just(UTC))


def at(minutes: float) -> datetime:
    return EPOCH + timedelta(minutes=minutes)


def holds(span: Span, ts: datetime) -> bool:
    return (span.since is None or span.since <= ts) and (span.until is None or ts < span.until)


@given(
    st.tuples(MOMENTS, MOMENTS).map(sorted),
    st.tuples(MOMENTS | st.none(), MOMENTS | st.none()),
    st.integers(0, 10_000_000),
    st.booleans(),
    st.lists(MOMENTS, min_size=1),
)
def test_any_moment_within_the_bounds_is_in_exactly_one_window(
    extent: list[datetime],
    bounds: tuple[datetime | None, datetime | None],
    events: int,
    newest_first: bool,
    moments: list[datetime],
) -> None:
    """Whatever the extent says, which may be out of date."""
    within = Span(*bounds)
    cut = list(islice(windows(within, Extent(events, *extent), newest_first=newest_first), 1000))

    assert len(cut) < 20
    for ts in moments:
        assert sum(holds(span, ts) for span in cut) == holds(within, ts)
    for earlier, later in pairwise(cut[::-1] if newest_first else cut):
        assert earlier.until == later.since


def test_a_patient_with_few_events_is_asked_for_once() -> None:
    within = Span(at(1), None)

    assert list(windows(within, Extent(500, at(0), at(9)), newest_first=True)) == [within]


def test_windows_start_narrow_at_the_end_that_is_read_first() -> None:
    extent = Extent(10_000, at(0), at(10_000))
    second = timedelta(seconds=1)

    newest = list(islice(windows(Span(), extent, newest_first=True), 2))
    oldest = list(islice(windows(Span(), extent, newest_first=False), 2))

    assert newest == [Span(at(10_000) - second, None), Span(at(10_000) - 9 * second, at(10_000) - second)]
    assert oldest == [Span(None, at(0) + second), Span(at(0) + second, at(0) + 9 * second)]


def test_windows_widen_so_that_a_silent_century_takes_few_of_them() -> None:
    extent = Extent(1_000_000, at(0), at(0) + timedelta(days=36500))

    assert len(list(windows(Span(), extent, newest_first=True))) == 12
