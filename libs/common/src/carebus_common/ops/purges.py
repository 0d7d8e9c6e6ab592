"""Deleting dead letters that are settled, by two people: one asks, another one approves."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Final

from pymongo import DeleteMany, ReturnDocument
from pymongo.asynchronous.client_session import AsyncClientSession

from carebus_common.contracts.event import new_event_id
from carebus_common.errors import NotAllowed
from carebus_common.mongo import Database
from carebus_common.ops.audit import Audit
from carebus_common.ops.indexes import DEAD_LETTERS
from carebus_common.ops.scope import Scope, nothing_here

__all__ = ["MAX_LISTED", "PURGES", "Purges"]

PURGES: Final = "purges"
MAX_LISTED: Final = 100

# Read at once, deleted at once, and how long one call goes on; an approval that is repeated goes on where it ended.
_PAGE: Final = 4096
_CHUNK: Final = 64
_SECONDS: Final = 10

Document = dict[str, Any]

# What is being tried again may still be needed; of the others nothing more will come.
_SETTLED: Final[tuple[Document, ...]] = (
    {"status": "discarded"},
    {
        "status": "redriven",
        "outcome.status": {"$in": ["processed", "duplicate", "conflict", "dead-lettered", "discarded"]},
    },
)


class Purges:
    """For the operations organization only. Raises Forbidden and PyMongoError."""

    def __init__(self, database: Database, audit: Audit) -> None:
        self._client = database.client
        self._purges = database[PURGES]
        self._letters = database[DEAD_LETTERS]
        self._audit = audit

    async def newest(self, scope: Scope) -> list[Document]:
        scope.require_operations()
        return await self._purges.find({}).sort([("_id", -1)]).limit(MAX_LISTED).to_list()

    async def request(self, scope: Scope, before: datetime, reason: str, audited: Document) -> Document:
        scope.require_operations()
        row = {
            "_id": str(new_event_id()),
            "before": before,
            "reason": reason,
            "requestedBy": scope.actor,
            "requestedAt": datetime.now(UTC),
            "approvedBy": None,
            "approvedAt": None,
            "status": "requested",
            "deleted": 0,
        }

        async def write(session: AsyncClientSession) -> None:
            await self._audit.write({**audited, "target": [row["_id"]]}, session)
            await self._purges.insert_one(row, session=session)

        async with self._client.start_session() as session:
            await session.with_transaction(write)
        return row

    async def approve(self, scope: Scope, purge_id: str, audited: Document) -> Document:
        """Approve and delete; the row as it then is. `approved` instead of `done`: there is more, approve again.

        Raises NotFound, and NotAllowed for whoever asked for it.
        """
        scope.require_operations()
        row = await self._purges.find_one({"_id": purge_id})
        if row is None:
            raise nothing_here()
        if row["requestedBy"] == scope.actor:
            raise NotAllowed("A purge is approved by somebody else than who asked for it.")
        if row["status"] == "done":
            return row

        async def write(session: AsyncClientSession) -> None:
            approval = {"approvedBy": scope.actor, "approvedAt": datetime.now(UTC), "status": "approved"}
            mine = {"_id": purge_id, "status": "requested"}
            if (await self._purges.update_one(mine, {"$set": approval}, session=session)).modified_count:
                await self._audit.write(audited, session)

        async with self._client.start_session() as session:
            await session.with_transaction(write)
        return await self._delete(await self._purges.find_one({"_id": purge_id}) or row)

    async def _delete(self, row: Document) -> Document:
        until = time.monotonic() + _SECONDS
        done = False
        while not done and time.monotonic() < until:
            deleted = 0
            for settled in _SETTLED:
                query = {**settled, "createdAt": {"$lt": row["before"]}}
                ids = [each["_id"] async for each in self._letters.find(query, {"_id": 1}).limit(_PAGE)]
                chunks = [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]
                if chunks:
                    # The condition once more: whatever it was when it was read, only what is settled goes.
                    deletions = [DeleteMany({**query, "_id": {"$in": chunk}}) for chunk in chunks]
                    deleted += (await self._letters.bulk_write(deletions, ordered=False)).deleted_count
            done = deleted == 0
            change: Document = {"$inc": {"deleted": deleted}}
            if done:
                change["$set"] = {"status": "done"}
            found = await self._purges.find_one_and_update(
                {"_id": row["_id"]}, change, return_document=ReturnDocument.AFTER
            )
            row = found or row
        return row
