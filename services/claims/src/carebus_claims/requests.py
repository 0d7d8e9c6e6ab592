"""What was answered to requests with an `Idempotency-Key`, kept for a day (draft-ietf-httpapi-idempotency-key-header).

`claims_idempotency`: `{_id: "organization/length:actor/key", organizationId, fingerprint, status, body, createdAt}`;
while the request is in progress, `status` is None. The answer is written in the transaction of what it tells of.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pymongo import IndexModel
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError

from carebus_common.errors import Conflict, NotAllowed
from carebus_common.mongo import in_time

__all__ = ["Answer", "InProgress", "KeyReused", "TenantRequests", "create_indexes"]

Document = dict[str, Any]
_REQUESTS: Final = "claims_idempotency"
_KEPT: Final = timedelta(days=1)
# A process that took a request and was killed; longer than any request may take.
_ABANDONED: Final = timedelta(seconds=60)


class InProgress(Conflict):
    code = "idempotency-key-in-progress"


class KeyReused(NotAllowed):
    code = "idempotency-key-reused"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the actor's request with this key: `body` as it was sent."""

    actor_id: str
    key: str
    status: int
    body: bytes


async def create_indexes(database: AsyncDatabase[Document]) -> None:
    await database[_REQUESTS].create_indexes(
        [IndexModel([("createdAt", 1)], name="kept", expireAfterSeconds=int(_KEPT.total_seconds()))]
    )


class TenantRequests:
    """One organization's requests. Every method raises Unavailable if the store does not answer in time."""

    def __init__(self, database: AsyncDatabase[Document], organization_id: str, timeout: timedelta) -> None:
        self._requests = database[_REQUESTS]
        self._organization_id = organization_id
        self._timeout = timeout

    def _id(self, actor_id: str, key: str) -> str:
        # With its length, so that no actor's id can end as another one's key begins.
        return f"{self._organization_id}/{len(actor_id)}:{actor_id}/{key}"

    async def begin(self, actor_id: str, key: str, fingerprint: str) -> Answer | None:
        """The answer that was given before; None: this request is the first, go on and answer it.

        Raises InProgress while another one with the key is at work, KeyReused if its content was another one.
        """
        row_id, now = self._id(actor_id, key), datetime.now(UTC)
        row = {
            "_id": row_id,
            "organizationId": self._organization_id,
            "fingerprint": fingerprint,
            "status": None,
            "body": None,
            "createdAt": now,
        }
        with in_time(self._timeout):
            try:
                await self._requests.insert_one(row)
                return None
            except DuplicateKeyError:
                found = await self._requests.find_one({"_id": row_id})
            if found is None:
                raise InProgress("A request with this key has just ended; send it again.")
            if found["fingerprint"] != fingerprint:
                raise KeyReused("This Idempotency-Key came with another request before; use a new one.")
            if found["status"] is not None:
                return Answer(actor_id, key, found["status"], bytes(found["body"]))
            abandoned = {"_id": row_id, "status": None, "createdAt": found["createdAt"]}
            if found["createdAt"] < now - _ABANDONED:
                taken = await self._requests.update_one(abandoned, {"$set": {"createdAt": now}})
                if taken.modified_count:
                    return None
        raise InProgress("A request with this key is in progress; ask again for its answer.")

    async def answered(self, answer: Answer, session: AsyncClientSession | None = None) -> None:
        """Keep the answer; within a transaction, with what it tells of."""
        await self._requests.update_one(
            {"_id": self._id(answer.actor_id, answer.key)},
            {"$set": {"status": answer.status, "body": answer.body}},
            session=session,
        )

    async def forget(self, actor_id: str, key: str) -> None:
        """The request failed without an effect: it may be sent again with the same key."""
        with in_time(self._timeout):
            await self._requests.delete_one({"_id": self._id(actor_id, key), "status": None})
