"""The histories and summaries of one organization: the only module that touches the collections.

The consumer runtime writes them (see `subscribers.py`); nothing else does.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, cast
from uuid import UUID

import bson
import pymongo
from pymongo import IndexModel
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase

from carebus_claims.windows import Extent, Span, windows
from carebus_common.mongo import in_time

__all__ = [
    "HISTORIES",
    "INDEXES",
    "PATIENTS",
    "HistoryFilter",
    "HistoryRepository",
    "Place",
    "TenantHistory",
    "TenantRequired",
]

Document = dict[str, Any]

HISTORIES: Final = "patient_histories"
PATIENTS: Final = "patients"

# Tenant first, so that no query can be served without one; `_id` last, so that a page ends between two events of
# the same moment.
INDEXES: Final = (
    IndexModel([("organizationId", 1), ("patientId", 1), ("ts", 1), ("_id", 1)], name="history"),
    IndexModel(
        [("organizationId", 1), ("patientId", 1), ("canonicalType", 1), ("ts", 1), ("_id", 1)], name="history_by_type"
    ),
)

_PAGE_BYTES: Final = 4 * 1024 * 1024


class TenantRequired(RuntimeError):
    """A query was about to run without an organization: a bug, and never the caller's fault."""


@dataclass(frozen=True, slots=True)
class HistoryFilter:
    """Which events of a patient, and in which order: of one canonical type, `since <= ts < until`."""

    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    newest_first: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """The last event of a page: the next page starts after it, whatever is inserted meanwhile."""

    ts: datetime
    row_id: str


class HistoryRepository:
    """What needs no tenant: the indexes and whether the store answers. `for_tenant` gives the rest."""

    def __init__(self, database: AsyncDatabase[Document], *, timeout: timedelta = timedelta(seconds=2)) -> None:
        self._database = database
        self._timeout = timeout

    async def create_indexes(self) -> None:
        """Create what is missing. Raises PyMongoError; may take as long as the store needs to build an index."""
        await self._database[HISTORIES].create_indexes(list(INDEXES))

    async def ping(self) -> None:
        """Raises Unavailable unless the store answers in time."""
        with in_time(self._timeout):
            await self._database.command("ping")

    def for_tenant(self, organization_id: str) -> TenantHistory:
        """Raises TenantRequired unless an organization is named."""
        return TenantHistory(self._database, organization_id, self._timeout)


class TenantHistory:
    """One organization's patients. Every method raises Unavailable if the store does not answer in time."""

    def __init__(self, database: AsyncDatabase[Document], organization_id: str, timeout: timedelta) -> None:
        if not isinstance(organization_id, str) or not organization_id:
            raise TenantRequired("name the organization whose histories are to be read")
        self._organization_id = organization_id
        self._histories: AsyncCollection[Document] = database[HISTORIES]
        self._patients: AsyncCollection[Document] = database[PATIENTS]
        self._timeout = timeout

    async def summary(self, patient_id: str) -> Document | None:
        """The patient's state as `handlers.record_history` left it; None if the patient is not known."""
        row_id = f"{self._organization_id}/{patient_id}"
        with in_time(self._timeout):
            row = await self._patients.find_one({"_id": row_id, "organizationId": self._organization_id})
        # A parked patient may have a row before any event was applied.
        return row.get("state") if row else None

    async def summaries(self, patient_ids: Sequence[str]) -> dict[str, Document]:
        """As `summary`, by patient id, of those that are known."""
        row_ids = [f"{self._organization_id}/{patient_id}" for patient_id in patient_ids]
        where = {"_id": {"$in": row_ids}, "organizationId": self._organization_id}
        with in_time(self._timeout):
            return {row["patientId"]: row["state"] async for row in self._patients.find(where) if row.get("state")}

    async def event(self, event_id: UUID) -> Document | None:
        """The history row of an event; None if it is not in this organization's histories."""
        row_id = f"{self._organization_id}/{event_id}"
        with in_time(self._timeout):
            row = await self._histories.find_one({"_id": row_id, "organizationId": self._organization_id}, _FIELDS)
        # An event that was discarded leaves a row that names no patient: it keeps the eventId, and is no history.
        return row if row and "patientId" in row else None

    async def history(
        self, patient_id: str, only: HistoryFilter, *, limit: int, after: Place | None = None
    ) -> tuple[list[Document], Place | None] | None:
        """At most `limit` history rows, and the place after which there are more (None: there are none).

        A page of large events is shorter: beyond its first row it holds at most 4 MiB. None for an unknown patient.
        """
        with in_time(self._timeout):
            summary = await self.summary(patient_id)
            if summary is None:
                return None
            rows: list[Document] = []
            room = _PAGE_BYTES
            for query in self.history_queries(patient_id, only, summary, after):
                async with aclosing(self._sized(query, only, limit + 1 - len(rows))) as found:
                    async for size, row in found:
                        if len(rows) == limit or (rows and size > room):
                            return rows, Place(rows[-1]["ts"], rows[-1]["_id"])
                        rows.append(row)
                        room -= size
            return rows, None

    def history_queries(
        self, patient_id: str, only: HistoryFilter, summary: Document, after: Place | None = None
    ) -> Iterator[Document]:
        """The filters that together find what `history` is asked for, in reading order.

        One index range each. No `$or`, which the embedded store answers by reading the whole collection, and no
        `$lte`, with which it misses rows at the bound where the index goes on behind it.
        """
        whose: Document = {"organizationId": self._organization_id, "patientId": patient_id}
        if only.type is not None:
            whose["canonicalType"] = only.type
        within = Span(only.since, only.until)
        if after is not None:
            beyond = "$lt" if only.newest_first else "$gt"
            yield {**whose, "ts": after.ts, "_id": {beyond: after.row_id}}
            # The place lies within the bounds, and times are stored to the millisecond.
            within = replace(within, until=after.ts) if only.newest_first else replace(within, since=_next(after.ts))
        extent = Extent(_expected(summary, only), summary["oldestTs"], summary["newestTs"])
        for span in windows(within, extent, newest_first=only.newest_first):
            bounds = {"$gte": span.since, "$lt": span.until}
            ts = {operator: bound for operator, bound in bounds.items() if bound is not None}
            yield {**whose, "ts": ts} if ts else whose

    async def _sized(self, query: Document, only: HistoryFilter, limit: int) -> AsyncGenerator[tuple[int, Document]]:
        """Rows with their size in bytes, decoded one by one: a batch of the largest would fill the memory."""
        direction = pymongo.DESCENDING if only.newest_first else pymongo.ASCENDING
        cursor = self._histories.find_raw_batches(query, _FIELDS)
        async with cursor.sort([("ts", direction), ("_id", direction)]).limit(limit).batch_size(limit):
            async for each in cursor:
                batch, offset = cast(bytes, each), 0
                while offset < len(batch):
                    size = int.from_bytes(batch[offset : offset + 4], "little")
                    yield size, bson.decode(batch[offset : offset + size], self._histories.codec_options)
                    offset += size


# Everything but the runtime's own: messages to re-emit, hashes, positions.
_FIELDS: Final = {
    "_id": 1,
    "eventId": 1,
    "patientId": 1,
    "type": 1,
    "ts": 1,
    "receivedAt": 1,
    "data": 1,
    "processing": 1,
    "stay": 1,
}


def _expected(summary: Document, only: HistoryFilter) -> int:
    """About how many events the filter's type leaves."""
    counts: dict[str | None, int] = {entry["type"]: entry["count"] for entry in summary["types"]}
    counts[None] = summary["eventTotal"]
    return counts.get(only.type, int(summary["otherTypes"]))


def _next(ts: datetime) -> datetime:
    return ts + timedelta(milliseconds=1)
