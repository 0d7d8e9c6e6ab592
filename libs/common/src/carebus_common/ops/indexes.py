"""The indexes that operators' questions need; creating one that exists changes nothing."""

from __future__ import annotations

from typing import Final

from pymongo import ASCENDING, IndexModel

from carebus_common.mongo import Database

__all__ = ["DEAD_LETTERS", "PARKED_EVENTS", "create_indexes"]

DEAD_LETTERS: Final = "dead_letters"
PARKED_EVENTS: Final = "parked_events"

# Lists go by time, and by `_id` among those of the same moment.
_IN_ORDER: Final = [("createdAt", ASCENDING), ("_id", ASCENDING)]

_INDEXES: Final = {
    DEAD_LETTERS: [
        IndexModel([("status", ASCENDING), *_IN_ORDER], name="status_time"),
        IndexModel([("failure.fingerprint", ASCENDING), *_IN_ORDER], name="fingerprint_time"),
        IndexModel([("organizationId", ASCENDING), *_IN_ORDER], name="organization_time"),
        IndexModel([("patient", ASCENDING)], name="patient_hash"),
        # The eventId first: a store that is no great planner would else read an organization's letters along it.
        IndexModel([("eventId", ASCENDING), ("organizationId", ASCENDING)], name="event"),
        IndexModel([("redrive.run", ASCENDING)], name="redrive_run", sparse=True),
        IndexModel([("discard.run", ASCENDING)], name="discard_run", sparse=True),
    ],
    PARKED_EVENTS: [IndexModel([("organizationId", ASCENDING), ("eventId", ASCENDING)], name="organization_event")],
}


async def create_indexes(database: Database) -> None:
    """Create what is missing. Raises PyMongoError; may take as long as the store needs to build an index."""
    for name, indexes in _INDEXES.items():
        await database[name].create_indexes(indexes)
