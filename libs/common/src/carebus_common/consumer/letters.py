"""A dead letter: as the owner's store keeps it, and as its DLQ topic carries it.

Document: `{_id: "topic-partition-offset" ("…~n" after n redrives), status: open | redriven | discarded, reason,
blocking (its patient waits for it), organizationId, eventId, patientId, patient (the hash), type, source, key, value,
headers, timestamp, failure: {class, message, where, fingerprint, attempts, firstFailedAt, lastFailedAt}, causes,
redrives, previous, createdAt, publishedAt, edits}`; later also `edited`, `redrive`, `discard`, `outcome`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from carebus_common.consumer.change import Position
from carebus_common.consumer.failure import Failure
from carebus_common.consumer.lanes import Letter, Record
from carebus_common.logging import patient_hash
from carebus_common.messages import Message

__all__ = ["DLQ_HEADERS", "Reason", "Tries", "letter_document", "letter_id", "letter_message", "patient_of"]

Document = dict[str, Any]
Reason = Literal["permanent", "retries-exhausted", "undecodable", "conflict", "crashed"]

# What the DLQ record has beside the original's own headers.
DLQ_HEADERS: Final = (
    "dlq.id",
    "dlq.topic",
    "dlq.partition",
    "dlq.offset",
    "dlq.timestamp",
    "dlq.group",
    "dlq.reason",
    "dlq.error-class",
    "dlq.error-message",
    "dlq.attempts",
    "dlq.first-failed-at",
    "dlq.last-failed-at",
    "dlq.fingerprint",
)


@dataclass(frozen=True, slots=True)
class Tries:
    """How often and since when an event failed."""

    attempts: int
    first_failed_at: datetime
    last_failed_at: datetime


def letter_id(position: Position, redrives: int = 0) -> str:
    place = f"{position.topic}-{position.partition}-{position.offset}"
    return f"{place}~{redrives}" if redrives else place


def patient_of(record: Record[Any], organization_id: str) -> str | None:
    """The patientId a record is about: its event's, else its key as text."""
    if record.event is not None:
        patient_id: str = record.event.patient_id
        return patient_id
    return None if record.key is None else record.key.decode(errors="backslashreplace")


def letter_document(
    record: Record[Any],
    organization_id: str | None,
    reason: Reason,
    failure: Failure,
    tries: Tries,
    *,
    blocking: bool,
    now: datetime,
    before: Letter | None = None,
) -> Document:
    """A new, open dead letter; `before` is the one whose redrive failed."""
    position, event = record.position, record.event
    patient_id = patient_of(record, organization_id or "")
    redrives = before.redrives + 1 if before else 0
    return {
        "_id": letter_id(position, redrives),
        "status": "open",
        "reason": reason,
        "blocking": blocking,
        "organizationId": organization_id,
        "eventId": str(event.event_id) if event else None,
        "patientId": patient_id,
        "patient": None if patient_id is None else patient_hash(organization_id or "", patient_id),
        "type": getattr(event, "type", None),
        "source": {"topic": position.topic, "partition": position.partition, "offset": position.offset},
        "key": record.key,
        # What was edited is tried again as it is now; the record as it came is that of the first letter.
        "value": record.value,
        "headers": [list(header) for header in record.headers],
        "timestamp": record.timestamp,
        "failure": {
            **failure.document(),
            "attempts": tries.attempts,
            "firstFailedAt": tries.first_failed_at,
            "lastFailedAt": tries.last_failed_at,
        },
        "causes": failure.causes_document(),
        "redrives": redrives,
        "previous": before.id if before else None,
        "createdAt": now,
        "publishedAt": None,
        "edits": [],
    }


def letter_message(topic: str, group: str, letter: Mapping[str, Any]) -> Message:
    """The record of the DLQ topic: key, value and headers as they came, and the `dlq.*` headers (all text)."""
    source, failure = letter["source"], letter["failure"]
    values = (
        letter["_id"],
        source["topic"],
        source["partition"],
        source["offset"],
        letter["timestamp"],
        group,
        letter["reason"],
        failure["class"],
        failure["message"],
        failure["attempts"],
        failure["firstFailedAt"].isoformat(),
        failure["lastFailedAt"].isoformat(),
        failure["fingerprint"],
    )
    return Message(
        topic,
        letter["key"],
        letter["value"],
        (
            *((name, content) for name, content in letter["headers"]),
            *((name, str(value).encode()) for name, value in zip(DLQ_HEADERS, values, strict=True)),
        ),
    )
