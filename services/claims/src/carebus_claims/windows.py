"""A patient's time cut into windows, so that a page costs about as much as it shows.

A MongoDB walks the index in order and stops at the page's end. The embedded store fetches and sorts everything
that a query's bounds admit, which for a patient with 100,000 events takes seconds a page. Both are quick with
narrow bounds. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

__all__ = ["Extent", "Span", "windows"]

# Up to here one query is quick everywhere.
_FEW: Final = 500
# A patient who sends hundreds of events a second is rare; from here, twelve windows span 300 years.
_FIRST: Final = timedelta(seconds=1)
_GROWTH: Final = 8


@dataclass(frozen=True, slots=True)
class Span:
    """`since <= ts < until`; None: no bound."""

    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Extent:
    """About what there is to page through: so many events, between the oldest and the newest."""

    events: int
    oldest: datetime
    newest: datetime


def windows(within: Span, extent: Extent, *, newest_first: bool) -> Iterator[Span]:
    """Adjoining spans that cover `within`, in reading order, each wider than the one before.

    Nothing is left out if the extent is out of date: the outermost spans are as open as `within`.
    """
    if extent.events <= _FEW:
        yield within
        return
    width = _FIRST
    first = extent.oldest if within.since is None else max(within.since, extent.oldest)
    last = extent.newest if within.until is None else min(within.until, extent.newest)
    since, until = within.since, within.until
    # Comparing before stepping, since a step might leave the years that a datetime can hold.
    while last - first > width:
        if newest_first:
            last -= width
            yield Span(last, until)
            until = last
        else:
            first += width
            yield Span(since, first)
            since = first
        width *= _GROWTH
    yield Span(since, until)
