"""Where an event is, from its row and its receipt."""

from __future__ import annotations

import time
from typing import Any, Protocol
from uuid import UUID

from pymongo.asynchronous.database import AsyncDatabase

__all__ = ["CommittedOffsets", "EventStatus"]


class CommittedOffsets(Protocol):
    async def committed(self, partition: int) -> int | None:
        """The group's committed offset, None before the first; raises KafkaError while the broker is away."""
        ...


class EventStatus:
    """Reads the processor's own rows, always within one organization."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]], offsets: CommittedOffsets) -> None:
        self._processed = database["processed_events"]
        self._offsets = offsets
        self._cached: dict[int, tuple[float, int | None]] = {}

    async def find(
        self, organization_id: str, event_id: UUID, partition: int | None, offset: int | None
    ) -> dict[str, Any] | None:
        """The event's status document, or None if it is not known to this organization.

        An event without a row is accepted as long as the committed offset has not passed its receipt.
        """
        row = await self._processed.find_one(
            {"_id": f"{organization_id}/{event_id}"}, {"messages": 0, "data": 0, "contentHash": 0}
        )
        if row is not None:
            return {
                "eventId": row["eventId"],
                "status": row["result"]["status"],
                "type": row["type"],
                "ts": row["ts"],
                "receivedAt": row["receivedAt"],
                "processedAt": row["processedAt"],
                "late": row["late"],
            }
        if partition is None or offset is None:
            return None
        passed = await self._committed(partition)
        if passed is not None and offset < passed:
            return None
        return {"eventId": str(event_id), "status": "accepted"}

    async def _committed(self, partition: int) -> int | None:
        """At most a second old: many senders poll at once, and an old answer only says "accepted" for longer."""
        cached = self._cached.get(partition)
        if cached is not None and time.monotonic() - cached[0] < 1:
            return cached[1]
        committed = await self._offsets.committed(partition)
        self._cached[partition] = (time.monotonic(), committed)
        return committed
