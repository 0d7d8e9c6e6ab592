"""Where an event is, from its row and its receipt."""

from __future__ import annotations

import time
from typing import Any, Final, Protocol
from uuid import UUID

from pymongo.asynchronous.database import AsyncDatabase

__all__ = ["CommittedOffsets", "EventStatus"]


# Outcomes of a redrive after which something is still to come.
_UNDER_WAY: Final = (None, "retrying")


class CommittedOffsets(Protocol):
    async def committed(self, partition: int) -> int | None:
        """The group's committed offset, None before the first; raises KafkaError while the broker is away."""
        ...


class EventStatus:
    """Reads the processor's own rows, always within one organization."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]], offsets: CommittedOffsets) -> None:
        self._processed = database["processed_events"]
        self._parked = database["parked_events"]
        self._letters = database["dead_letters"]
        self._offsets = offsets
        self._cached: dict[int, tuple[float, int | None]] = {}

    async def find(
        self, organization_id: str, event_id: UUID, partition: int | None, offset: int | None
    ) -> dict[str, Any] | None:
        """The event's status document, or None if it is not known to this organization.

        An event that is nowhere is accepted as long as the committed offset has not passed its receipt.
        """
        found = await self._applied(organization_id, event_id) or await self._waiting(organization_id, event_id)
        if found is not None or partition is None or offset is None:
            return found
        passed = await self._committed(partition)
        if passed is None or offset >= passed:
            return {"eventId": str(event_id), "status": "accepted"}
        # It may have been applied since the first look.
        return await self._applied(organization_id, event_id)

    async def _applied(self, organization_id: str, event_id: UUID) -> dict[str, Any] | None:
        """From the inbox: what took effect, and what was discarded, whose row has no more than its ids."""
        row = await self._processed.find_one(
            {"_id": f"{organization_id}/{event_id}"}, {"messages": 0, "data": 0, "contentHash": 0}
        )
        if row is None:
            return None
        if "result" not in row:
            return {"eventId": row["eventId"], "status": "discarded"}
        return {
            "eventId": row["eventId"],
            "status": row["result"]["status"],
            "type": row["type"],
            "ts": row["ts"],
            "receivedAt": row["receivedAt"],
            "processedAt": row["processedAt"],
            "late": row["late"],
        }

    async def _waiting(self, organization_id: str, event_id: UUID) -> dict[str, Any] | None:
        """From what is parked and the dead letters; one that a redrive is about to apply is still a dead letter."""
        which = {"organizationId": organization_id, "eventId": str(event_id)}
        parked = await self._parked.find_one(which, {"type": 1})
        if parked is not None:
            return {"eventId": str(event_id), "status": "parked", "type": parked["type"]}
        letters = self._letters.find(which, {"status": 1, "type": 1, "outcome.status": 1})
        discarded: dict[str, Any] | None = None
        async for letter in letters:
            outcome = (letter.get("outcome") or {}).get("status")
            if letter["status"] == "open" or (letter["status"] == "redriven" and outcome in _UNDER_WAY):
                return {"eventId": str(event_id), "status": "dead-lettered", "type": letter["type"]}
            if "discarded" in (letter["status"], outcome):
                discarded = {"eventId": str(event_id), "status": "discarded", "type": letter["type"]}
        return discarded

    async def _committed(self, partition: int) -> int | None:
        """At most a second old: many senders poll at once, and an old answer only says "accepted" for longer."""
        cached = self._cached.get(partition)
        if cached is not None and time.monotonic() - cached[0] < 1:
            return cached[1]
        committed = await self._offsets.committed(partition)
        self._cached[partition] = (time.monotonic(), committed)
        return committed
