"""The dead letters of one service, as operators see them: the only module that reads them for people.

The consumer runtime writes them and alone decides what becomes of them (its docstrings have the shapes); from here
it gets requests.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from pymongo import ASCENDING, DESCENDING
from pymongo.asynchronous.client_session import AsyncClientSession

from carebus_common.errors import Conflict
from carebus_common.mongo import Database
from carebus_common.ops.audit import Audit
from carebus_common.ops.indexes import DEAD_LETTERS
from carebus_common.ops.scope import Scope
from carebus_common.ops.selection import Place, Selection, spans

__all__ = ["REQUESTS", "DeadLetters", "Skipped", "redrivable", "why_not"]

Document = dict[str, Any]

REQUESTS: Final = "dead_letter_requests"
# Dead letters that one request row names.
_ROW_IDS: Final = 500
# Counting goes on no further than anybody reads the number.
_MAX_COUNT: Final = 10_000
# Those that failed again of which a run tells the ids.
_AGAIN: Final = 100
# What the embedded store looks up quickly at once.
_CHUNK: Final = 64

_PAYLOAD: Final = {"key": 0, "value": 0, "headers": 0, "edited": 0, "causes": 0, "edits": 0}
_DECIDING: Final = {"source": 1, "status": 1, "blocking": 1, "redrives": 1, "patient": 1, "createdAt": 1}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A dead letter that is not asked for: `not-open`, `not-redrivable`, `redrive-cap` or `not-found`."""

    id: str
    why: str


def why_not(row: Document, action: str, redrive_cap: int) -> str | None:
    """Why nobody may redrive or discard this one; None if one may."""
    if row["status"] != "open":
        return "not-open"
    # One that does not say so is from before there were redrives, and no owner knows what to do with it.
    if "blocking" not in row or (action == "redrive" and not row["blocking"]):
        return "not-redrivable"
    if action == "redrive" and row.get("redrives", 0) >= redrive_cap:
        return "redrive-cap"
    return None


def redrivable(redrive_cap: int) -> Document:
    """The same as a query, for those that are open."""
    return {"blocking": True, "redrives": {"$lt": redrive_cap}}


class DeadLetters:
    """Every method takes the caller's scope and raises PyMongoError, and NotFound for another organization's."""

    def __init__(self, database: Database, audit: Audit) -> None:
        self._client = database.client
        self._letters = database[DEAD_LETTERS]
        self._requests = database[REQUESTS]
        self._audit = audit

    # --- reading ------------------------------------------------------------------------------------------------

    async def find(self, scope: Scope, letter_id: str) -> Document | None:
        """One dead letter, whole."""
        return await self._letters.find_one(scope.only({"_id": letter_id}))

    async def page(self, scope: Scope, selection: Selection, *, limit: int, after: Place | None) -> list[Document]:
        """At most `limit` of the selection beyond `after`, newest first, without their payloads."""
        return await self._read(scope, selection, limit, after, newest_first=True, projection=_PAYLOAD)

    async def oldest(self, scope: Scope, selection: Selection, *, limit: int, after: Place | None) -> list[Document]:
        """The same, oldest first, with what decides whether they may be redriven."""
        return await self._read(scope, selection, limit, after, newest_first=False, projection=_DECIDING)

    async def _read(
        self,
        scope: Scope,
        selection: Selection,
        limit: int,
        after: Place | None,
        *,
        newest_first: bool,
        projection: Document,
    ) -> list[Document]:
        direction = DESCENDING if newest_first else ASCENDING
        only = scope.only(selection.query())
        rows: list[Document] = []
        for span in spans(selection, newest_first=newest_first, after=after, now=datetime.now(UTC)):
            room = limit - len(rows)
            found: list[Document] = []
            # One query a status: each is one range of the index, and in its order.
            for status in selection.statuses:
                cursor = self._letters.find({**only, "status": status, **span}, projection)
                found += await cursor.sort([("createdAt", direction), ("_id", direction)]).limit(room).to_list()
            if len(selection.statuses) > 1:
                found.sort(key=lambda row: (row["createdAt"], row["_id"]), reverse=newest_first)
            rows += found[:room]
            if len(rows) == limit:
                break
        return rows

    async def named(self, scope: Scope, ids: Sequence[str]) -> dict[str, Document]:
        """Those of `ids` that there are, with what decides whether they may be redriven."""
        found: dict[str, Document] = {}
        for start in range(0, len(ids), _CHUNK):
            chunk = list(ids[start : start + _CHUNK])
            async for row in self._letters.find(scope.only({"_id": {"$in": chunk}}), _DECIDING):
                found[row["_id"]] = row
        return found

    async def count(self, scope: Scope, selection: Selection, more: Document) -> tuple[int, bool]:
        """How many of the selection's first status also match `more`; True if there may be more than that."""
        query = {**selection.query(), **more, "status": selection.statuses[0], **selection.within.query()}
        counted: int = await self._letters.count_documents(scope.only(query), limit=_MAX_COUNT)
        return counted, counted == _MAX_COUNT

    async def count_open(self, scope: Scope) -> int:
        counted: int = await self._letters.count_documents(scope.only({"status": "open"}))
        return counted

    async def summary(self, scope: Scope, selection: Selection) -> list[Document]:
        """One row a fingerprint: `{fingerprint, example (a dead letter), counts: {status: n}, patients, first, last}`.

        `patients` are those with an open one; the largest come first.
        """
        matching = scope.only({**selection.query(), **selection.within.query()})
        by_status, patients = await asyncio.gather(self._by_status(matching), self._patients(matching))
        groups: dict[str, Document] = {}
        for row in by_status:
            fingerprint, _, status = row["_id"].rpartition("/")
            group = groups.setdefault(fingerprint, {**row, "fingerprint": fingerprint, "counts": {}})
            group["counts"][status] = row["count"]
            group["first"] = min(group["first"], row["first"])
            group["last"] = max(group["last"], row["last"])
        for fingerprint, group in groups.items():
            group["patients"] = patients.get(fingerprint, 0)
            latest = {**matching, "failure.fingerprint": fingerprint, "createdAt": group["last"]}
            group["example"] = await self._letters.find_one(latest, _PAYLOAD)
        # One that was purged meanwhile has no example any more.
        rows = [group for group in groups.values() if group["example"] is not None]
        return sorted(rows, key=lambda group: (-group["counts"].get("open", 0), group["fingerprint"]))

    async def _by_status(self, matching: Document) -> list[Document]:
        """`{_id: "fingerprint/status", count, first, last}`."""
        # Texts as keys, and no stage without need: the embedded store is slow with either.
        pipeline: list[Document] = [
            *([{"$match": matching}] if matching else []),
            {
                "$group": {
                    "_id": {"$concat": ["$failure.fingerprint", "/", "$status"]},
                    "count": {"$sum": 1},
                    "first": {"$min": "$createdAt"},
                    "last": {"$max": "$createdAt"},
                }
            },
        ]
        return [row async for row in await self._letters.aggregate(pipeline) if row["_id"] is not None]

    async def _patients(self, matching: Document) -> dict[str, int]:
        """Distinct patients with an open one, by fingerprint."""
        pipeline: list[Document] = [
            {"$match": {**matching, "status": "open"}},
            {
                "$group": {
                    # Null without a patient.
                    "_id": {"$concat": ["$failure.fingerprint", "/", "$patient"]},
                    "fingerprint": {"$first": "$failure.fingerprint"},
                }
            },
            {"$match": {"_id": {"$ne": None}}},
            {"$group": {"_id": "$fingerprint", "patients": {"$sum": 1}}},
        ]
        return {row["_id"]: row["patients"] async for row in await self._letters.aggregate(pipeline)}

    async def pending(self, scope: Scope, run: str | None = None) -> tuple[int, int]:
        """Requests (of a run) that no owner has carried out yet, and the dead letters they name."""
        matching = scope.only({} if run is None else {"run": run})
        pipeline: list[Document] = [
            {"$match": matching},
            {"$group": {"_id": None, "requests": {"$sum": 1}, "letters": {"$sum": {"$size": "$deadLetterIds"}}}},
        ]
        async for row in await self._requests.aggregate(pipeline):
            return row["requests"], row["letters"]
        return 0, 0

    async def outcomes(self, scope: Scope, run: str) -> tuple[Counter[str], list[Document]]:
        """What a run came to so far: how many by outcome, and some that failed again, with `outcome.deadLetter`."""
        counts: Counter[str] = Counter()
        again: list[Document] = []
        # One query each: either is one range of an index, and one of them is empty.
        for decision in ("redrive", "discard"):
            matching = scope.only({f"{decision}.run": run})
            pipeline = [{"$match": matching}, {"$group": {"_id": "$outcome.status", "count": {"$sum": 1}}}]
            counts.update({row["_id"]: row["count"] async for row in await self._letters.aggregate(pipeline)})
        if counts["dead-lettered"]:
            failed = scope.only({"redrive.run": run, "outcome.status": "dead-lettered"})
            again = await self._letters.find(failed, {"outcome.deadLetter": 1}).limit(_AGAIN).to_list()
        return +counts, again

    # --- asking -------------------------------------------------------------------------------------------------

    async def request(
        self, scope: Scope, action: str, rows: Sequence[Document], reason: str, audited: Document, run: str | None
    ) -> None:
        """Ask the partitions' owners to redrive or discard these; with the audit row, both or neither."""
        requests = list(_requests(scope, action, rows, reason, run))

        async def write(session: AsyncClientSession) -> None:
            await self._audit.write(audited, session)
            await self._requests.insert_many(requests, session=session)

        async with self._client.start_session() as session:
            await session.with_transaction(write)

    async def edit(
        self, scope: Scope, row: Document, edited: bytes, entry: Document, audited: Document, run: str | None = None
    ) -> None:
        """Keep `edited` as the value of the redrive, and ask for it. Raises Conflict if `row` has changed meanwhile."""
        requests = list(_requests(scope, "redrive", [row], entry["reason"], run))
        as_read = scope.only({"_id": row["_id"], "status": "open", "blocking": True, "edits": row.get("edits")})

        async def write(session: AsyncClientSession) -> None:
            change = {"$set": {"edited": edited}, "$push": {"edits": entry}}
            done = await self._letters.update_one(as_read, change, session=session)
            if done.matched_count == 0:
                raise Conflict("The dead letter has changed meanwhile; look at it again.")
            await self._audit.write(audited, session)
            await self._requests.insert_many(requests, session=session)

        async with self._client.start_session() as session:
            await session.with_transaction(write)


def _requests(scope: Scope, action: str, rows: Sequence[Document], reason: str, run: str | None) -> Iterator[Document]:
    """Rows of `dead_letter_requests`: one partition each, at most 500 dead letters each."""
    by_partition: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        by_partition.setdefault((row["source"]["topic"], row["source"]["partition"]), []).append(row["_id"])
    now = datetime.now(UTC)
    for (topic, partition), ids in by_partition.items():
        for start in range(0, len(ids), _ROW_IDS):
            yield {
                "_id": str(uuid4()),
                "topic": topic,
                "partition": partition,
                "action": action,
                "deadLetterIds": ids[start : start + _ROW_IDS],
                "by": scope.actor,
                "organizationId": scope.actor_organization_id,
                "reason": reason,
                "requestedAt": now,
                "run": run,
            }
