"""The topics, as every broker must have them. `carebus topics apply` creates or alters them to match."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

__all__ = ["CLAIMS_CHANGES", "CLAIMS_DLQ", "EVENTS", "EVENTS_DLQ", "EVENTS_PROCESSED", "TOPICS", "TopicDefinition"]


@dataclass(frozen=True, slots=True)
class TopicDefinition:
    """A topic's name, partitions, retention and further broker settings.

    The partition count of a topic keyed by patient may only grow by the documented procedure: another count
    sends a patient's later events to another partition, past the events that wait in the first.
    """

    name: str
    partitions: int
    retention: timedelta
    settings: dict[str, str] = field(default_factory=dict)


_PARTITIONS: Final = 12
# The largest event is 256 KiB of data.
_MAX_MESSAGE: Final = {"max.message.bytes": str(1024 * 1024)}
# A dead letter is a whole record of another topic, and what happened to it.
_MAX_DEAD_LETTER: Final = {"max.message.bytes": str(1024 * 1024 + 64 * 1024)}

EVENTS: Final = TopicDefinition("medical.events.v1", _PARTITIONS, timedelta(days=14), _MAX_MESSAGE)
EVENTS_PROCESSED: Final = TopicDefinition("medical.events.processed.v1", _PARTITIONS, timedelta(days=30), _MAX_MESSAGE)
EVENTS_DLQ: Final = TopicDefinition("medical.events.dlq.v1", _PARTITIONS, timedelta(days=90), _MAX_DEAD_LETTER)
CLAIMS_CHANGES: Final = TopicDefinition("claims.changes.v1", _PARTITIONS, timedelta(days=30), _MAX_MESSAGE)
CLAIMS_DLQ: Final = TopicDefinition("claims.dlq.v1", _PARTITIONS, timedelta(days=90), _MAX_DEAD_LETTER)

TOPICS: Final = (EVENTS, EVENTS_PROCESSED, EVENTS_DLQ, CLAIMS_CHANGES, CLAIMS_DLQ)
