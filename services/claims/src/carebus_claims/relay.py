"""Publishes the changes of claims to `claims.changes.v1`: each organization's in their order, each at least once.

    claims_audit (publishedAt: null) ──▶ claims.changes.v1 ──▶ publishedAt

The audit's row is the outbox: it is written with the change, and published from there. All replicas run this; two that
publish the same row, or one that is killed before it noted so, send it twice with the same id (`organization/seq`), by
which consumers tell. A change never goes out before the ones of lower numbers of its organization.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from pymongo import ASCENDING
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from carebus_common.cancellation import cancelled
from carebus_common.failpoints import failpoint
from carebus_common.kafka import BrokerAway, Publisher
from carebus_common.logging import get_logger
from carebus_common.messages import Message, Receipt

__all__ = ["ChangeRelay", "change_message"]

Document = dict[str, Any]
_AUDIT: Final = "claims_audit"
_AT_ONCE: Final = 1000
_CHUNK: Final = 64
# What another replica wrote, or the consumer, is seen after this.
_EVERY: Final = timedelta(seconds=0.25)
_AWAY: Final = timedelta(seconds=1)
log = get_logger(__name__)


class ChangeRelay:
    """`wake` makes it look at once."""

    def __init__(self, database: AsyncDatabase[Document], publisher: Publisher, topic: str) -> None:
        self._audit = database[_AUDIT]
        self._publisher = publisher
        self._topic = topic
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; waits for a store or a broker that is away."""
        while not cancelled():
            self._wake.clear()
            try:
                more = await self.publish_some()
            except (PyMongoError, BrokerAway) as error:
                log.warning("changes-wait", reason=type(error).__name__)
                await asyncio.sleep(_AWAY.total_seconds())
                continue
            if not more:
                try:
                    async with asyncio.timeout(_EVERY.total_seconds()):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def publish_some(self) -> bool:
        """Publish what waits, at most 1,000 changes; whether there may be more. Raises PyMongoError, BrokerAway."""
        rows = await self._audit.find({"publishedAt": None}).sort("_id", ASCENDING).limit(_AT_ONCE).to_list()
        if not rows:
            return False
        failpoint("before-change-message")
        outcomes = await self._publisher.publish_each([change_message(row, self._topic) for row in rows])
        failpoint("after-change-message")
        published: list[str] = []
        blocked: set[str] = set()
        away: Exception | None = None
        for row, outcome in zip(rows, outcomes, strict=True):
            if row["organizationId"] in blocked:
                continue
            if isinstance(outcome, Receipt):
                published.append(row["_id"])
            else:
                # A claim is bounded far below the largest message, so this is the broker's absence.
                blocked.add(row["organizationId"])
                away = outcome
        now = datetime.now(UTC)
        for begin in range(0, len(published), _CHUNK):
            ids = published[begin : begin + _CHUNK]
            await self._audit.update_many({"_id": {"$in": ids}}, {"$set": {"publishedAt": now}})
        if away is not None:
            raise away
        return len(rows) == _AT_ONCE


def change_message(row: Mapping[str, Any], topic: str) -> Message:
    """A row of the audit as the message that tells of it: `{id, organizationId, seq, at, actor, action, claimId,
    patientId, version, before, after, cause, reason, requestId}`, keyed by the patient."""
    value: Document = {
        "id": f"{row['organizationId']}/{row['seq']}",
        **{name: row[name] for name in _FIELDS},
        "at": row["at"].astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    return Message(
        topic,
        row["patientId"].encode(),
        msgspec.json.encode(value),
        (("organizationId", row["organizationId"].encode()), ("content-type", b"application/json")),
    )


_FIELDS: Final[Sequence[str]] = (
    "organizationId",
    "seq",
    "actor",
    "action",
    "claimId",
    "patientId",
    "version",
    "before",
    "after",
    "cause",
    "reason",
    "requestId",
)
