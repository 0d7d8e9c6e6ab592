"""The indexes of the processor's database, created at start; creating one that exists changes nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pymongo import ASCENDING, IndexModel
from pymongo.asynchronous.database import AsyncDatabase

from carebus_common import ops

__all__ = ["ensure_indexes"]


async def ensure_indexes(database: AsyncDatabase[dict[str, Any]], retention: timedelta) -> None:
    """`_id` is organization and eventId, so it is the unique index that decides about duplicates."""
    await database["processed_events"].create_indexes(
        [
            IndexModel(
                [("organizationId", ASCENDING), ("patientId", ASCENDING), ("ts", ASCENDING)], name="patient_time"
            ),
            IndexModel(
                [("processedAt", ASCENDING)], name="retention", expireAfterSeconds=int(retention.total_seconds())
            ),
        ]
    )
    await ops.create_indexes(database)
