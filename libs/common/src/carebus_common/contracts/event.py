"""The medical event: one model from the HTTP body to the Kafka record.

On the wire names are camelCase; in Python snake_case. `MedicalEvent` is the record's value; what a sender
posts is the same without `organizationId` and `receivedAt` and with `eventId` optional (`SubmittedEvent`).
"""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID, uuid5

import msgspec
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

__all__ = [
    "EVENT_TYPE_PATTERN",
    "MAX_DATA_BYTES",
    "MAX_DATA_DEPTH",
    "SCHEMA_VERSION",
    "MedicalEvent",
    "SubmittedEvent",
    "canonical_type",
    "encode",
    "encode_fields",
    "event_id_from_key",
    "new_event_id",
]

SCHEMA_VERSION: Final = "1"
MAX_DATA_BYTES: Final = 256 * 1024
MAX_DATA_DEPTH: Final = 32
EVENT_TYPE_PATTERN: Final = r"^(?:[a-z][a-z0-9-]*(?:\.[a-z0-9][a-z0-9-]*)*|[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)$"

_RFC3339: Final = re.compile(r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)$")
# Any fixed namespace does; it only has to stay the same for ever, or a retry would get another eventId.
_IDEMPOTENCY_NAMESPACE: Final = UUID("6c1f1c1e-6b3e-5f0a-9a52-0b6a1f3e7d10")


def _rfc3339(value: Any) -> Any:
    """Let only RFC 3339 text with an offset through: pydantic alone would also read epoch numbers."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or not _RFC3339.match(value):
        raise ValueError("must be an RFC 3339 date-time with an offset, such as 2026-01-31T08:15:00-05:00")
    return value


def _within_utc(value: datetime) -> datetime:
    """Refuse what leaves the years 1 to 9999 in UTC, such as 0001-01-01T00:00:00+14:00: no store can keep it."""
    try:
        value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie within the years 1 to 9999 in UTC") from None
    return value


def _uuid(value: Any) -> Any:
    if isinstance(value, UUID):
        return value
    if not isinstance(value, str) or len(value) != 36:
        raise ValueError("must be a UUID in its 36-character form")
    return value


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode") from None
    return value


Timestamp = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_within_utc)]
EventId = Annotated[UUID, BeforeValidator(_uuid)]
PatientId = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_encodable)]
EventType = Annotated[str, Field(min_length=1, max_length=64, pattern=EVENT_TYPE_PATTERN)]


class _Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, frozen=True, extra="forbid")


class SubmittedEvent(_Wire):
    """What a sender posts. `data` is at most 256 KiB as JSON and at most 32 levels deep."""

    event_id: EventId | None = None
    patient_id: PatientId
    type: EventType
    ts: Timestamp
    data: dict[str, Any]


class MedicalEvent(_Wire):
    """An accepted event: the value of a record on `medical.events.v1`, keyed by the patientId's UTF-8 bytes.

    What `SubmittedEvent` checks in Python is not checked again here: every consumer reads each record, and the
    rules left are the ones pydantic checks without leaving its core, in a fifth of the time.
    """

    event_id: UUID
    organization_id: str
    patient_id: Annotated[str, Field(min_length=1, max_length=128)]
    type: EventType
    ts: AwareDatetime
    received_at: AwareDatetime
    data: dict[str, Any]


def canonical_type(event_type: str) -> str:
    """The name handlers know: `LAB_RESULT` and `lab-result` are one type; the event keeps what was sent."""
    return event_type.lower().replace("_", "-") if event_type.isupper() else event_type


def event_id_from_key(organization_id: str, idempotency_key: str) -> UUID:
    """The eventId of a sender that gives an `Idempotency-Key` instead: UUIDv5 of organization and key."""
    return uuid5(_IDEMPOTENCY_NAMESPACE, f"{organization_id}\n{idempotency_key}")


def new_event_id() -> UUID:
    """A UUIDv7 (RFC 9562, 5.7): 48 bits of Unix milliseconds, then random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)


def encode(event: MedicalEvent) -> bytes:
    """The record's value: compact JSON in the model's field order, camelCase."""
    return encode_fields(
        event_id=event.event_id,
        organization_id=event.organization_id,
        patient_id=event.patient_id,
        event_type=event.type,
        ts=event.ts,
        received_at=event.received_at,
        data=event.data,
    )


def encode_fields(
    *,
    event_id: UUID,
    organization_id: str,
    patient_id: str,
    event_type: str,
    ts: datetime,
    received_at: datetime,
    data: dict[str, Any],
) -> bytes:
    """The same of an event's parts, for those who have validated them and need no model."""
    return msgspec.json.encode(
        {
            "eventId": event_id,
            "organizationId": organization_id,
            "patientId": patient_id,
            "type": event_type,
            "ts": ts,
            "receivedAt": received_at,
            "data": data,
        }
    )
