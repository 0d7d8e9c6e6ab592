"""Which dead letters: the filter, its order, and how a long list is read piece by piece. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

__all__ = ["STATUSES", "Place", "Selection", "Span", "spans", "to_datetime", "to_milliseconds"]

STATUSES: Final = ("open", "redriven", "discarded")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT: Final = timedelta(milliseconds=1)
# From here, twelve spans reach back 300 years.
_FIRST: Final = timedelta(seconds=1)
_GROWTH: Final = 8


@dataclass(frozen=True, slots=True)
class Place:
    """The last dead letter of a page: the next page starts after it, whatever is inserted meanwhile."""

    created_at: datetime
    row_id: str


@dataclass(frozen=True, slots=True)
class Span:
    """`since <= createdAt < until`; None: no bound."""

    since: datetime | None = None
    until: datetime | None = None

    def query(self) -> dict[str, Any]:
        bounds = {"$gte": self.since, "$lt": self.until}
        return {"createdAt": within} if (within := {op: at for op, at in bounds.items() if at is not None}) else {}


@dataclass(frozen=True, slots=True)
class Selection:
    """Dead letters by what an operator knows of them. `patients` are hashes, of which any."""

    statuses: tuple[str, ...] = STATUSES
    fingerprint: str | None = None
    type: str | None = None
    organization_id: str | None = None
    patients: tuple[str, ...] = ()
    within: Span = Span()

    def query(self) -> dict[str, Any]:
        """Everything but the status and the time."""
        query: dict[str, Any] = {}
        if self.organization_id is not None:
            query["organizationId"] = self.organization_id
        if self.fingerprint is not None:
            query["failure.fingerprint"] = self.fingerprint
        if self.type is not None:
            query["type"] = self.type
        if self.patients:
            query["patient"] = self.patients[0] if len(self.patients) == 1 else {"$in": list(self.patients)}
        return query

    def document(self) -> dict[str, Any]:
        """For the audit; it names a patient by hash only."""
        named = {
            "fingerprint": self.fingerprint,
            "type": self.type,
            "organizationId": self.organization_id,
            "patient": self.patients[0] if self.patients else None,
            "since": self.within.since,
            "until": self.within.until,
        }
        return {name: value for name, value in named.items() if value is not None}


def spans(selection: Selection, *, newest_first: bool, after: Place | None, now: datetime) -> Iterator[dict[str, Any]]:
    """Queries on `createdAt` and `_id` that together cover the selection's time beyond `after`, in reading order.

    A MongoDB stops at the page's end by itself; the embedded store fetches and sorts whatever the bounds admit, and
    is quick only with narrow ones. No `$or` and no `$lte`, which it answers slowly or not in full.
    """
    within = selection.within
    if after is not None:
        beyond = "$lt" if newest_first else "$gt"
        yield {"createdAt": after.created_at, "_id": {beyond: after.row_id}}
        if newest_first:
            within = Span(within.since, after.created_at)
        else:
            within = Span(after.created_at + _MOMENT, within.until)
    if selection.patients or (within.since is None and not newest_first):
        # A patient has few of them; and where the oldest one is, nobody knows yet.
        yield within.query()
        return
    yield from (span.query() for span in _widening(within, newest_first, now))


def _widening(within: Span, newest_first: bool, now: datetime) -> Iterator[Span]:
    """Adjoining spans, each wider than the one before; the last one is as open as `within`."""
    width, since, until = _FIRST, within.since, within.until
    first = since or _EPOCH
    last = min(until, now) if until is not None else now
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


def to_milliseconds(at: datetime) -> int:
    """All that the store keeps of a time."""
    return (at - _EPOCH) // _MOMENT


def to_datetime(milliseconds: int) -> datetime:
    return _EPOCH + milliseconds * _MOMENT
