"""From a body to the message that is published for it, or to the refusal: pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from pydantic import ValidationError

from carebus_common import strict_json
from carebus_common.contracts.event import (
    MAX_DATA_BYTES,
    SCHEMA_VERSION,
    SubmittedEvent,
    encode_fields,
    event_id_from_key,
    new_event_id,
)
from carebus_common.contracts.event_types import data_errors
from carebus_common.contracts.topics import EVENTS
from carebus_common.errors import InvalidRequest, PayloadTooLarge
from carebus_common.http.envelopes import problems_of
from carebus_common.messages import Message

__all__ = ["Accepted", "Sender", "accept_event"]

# JSON grows at most fivefold when it is written anew (`1e15` becomes `1000000000000000.0`), so that a shorter body
# cannot hold too much data.
_SURELY_SMALL: Final = MAX_DATA_BYTES // 6

_validate: Final = SubmittedEvent.__pydantic_validator__.validate_python
_SPECVERSION: Final = ("ce_specversion", b"1.0")
_CONTENT_TYPE: Final = ("content-type", b"application/json")
_SCHEMA_VERSION: Final = ("schemaVersion", SCHEMA_VERSION.encode())


@dataclass(frozen=True, slots=True)
class Sender:
    """What an event gets from its request and not from its body: the token's organization, the time, the trace."""

    organization_id: str
    received_at: datetime
    traceparent: str
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """An event that may be published, as the message that is to be."""

    event_id: UUID
    type: str
    message: Message


def accept_event(body: bytes, sender: Sender) -> Accepted:
    """The event in `body`, ready for the topic.

    Raises `MalformedJson` for what is no strict JSON object, `InvalidRequest` with every offending field, and
    `PayloadTooLarge` if its data are.
    """
    submitted = _validated(strict_json.parse_object(body))
    if len(body) > _SURELY_SMALL and len(msgspec.json.encode(submitted.data)) > MAX_DATA_BYTES:
        raise PayloadTooLarge(
            "The event's data are too large.",
            details=[{"path": "$.data", "rule": f"at most {MAX_DATA_BYTES} bytes as JSON"}],
        )
    event_id = _event_id(submitted, sender)
    return Accepted(event_id, submitted.type, _message(event_id, submitted, sender))


def _validated(body: dict[str, Any]) -> SubmittedEvent:
    """Raises InvalidRequest with a detail for every field that breaks a rule, those within `data` included."""
    problems: list[dict[str, str]] = []
    submitted: SubmittedEvent | None = None
    try:
        submitted = _validate(body)
    except ValidationError as invalid:
        problems += problems_of(invalid.errors(include_url=False, include_context=False), within=("body",))
    event_type, data = body.get("type"), body.get("data")
    if isinstance(event_type, str) and isinstance(data, dict):
        problems += problems_of(data_errors(event_type, data), within=("body",))
    if submitted is None or problems:
        raise InvalidRequest("The event breaks a rule.", details=problems)
    return submitted


def _event_id(submitted: SubmittedEvent, sender: Sender) -> UUID:
    if submitted.event_id is not None:
        return submitted.event_id
    if sender.idempotency_key is not None:
        return event_id_from_key(sender.organization_id, sender.idempotency_key)
    return new_event_id()


def _message(event_id: UUID, submitted: SubmittedEvent, sender: Sender) -> Message:
    """The record: CloudEvents in Kafka's binary mode (CloudEvents Kafka protocol binding 1.0.2, 3.2)."""
    return Message(
        EVENTS.name,
        submitted.patient_id.encode(),
        encode_fields(
            event_id=event_id,
            organization_id=sender.organization_id,
            patient_id=submitted.patient_id,
            event_type=submitted.type,
            ts=submitted.ts,
            received_at=sender.received_at,
            data=submitted.data,
        ),
        (
            _SPECVERSION,
            ("ce_id", str(event_id).encode()),
            ("ce_source", f"/organizations/{sender.organization_id}".encode()),
            ("ce_type", submitted.type.encode()),
            ("ce_time", submitted.ts.isoformat().encode()),
            _CONTENT_TYPE,
            ("organizationId", sender.organization_id.encode()),
            _SCHEMA_VERSION,
            ("traceparent", sender.traceparent.encode()),
        ),
    )
