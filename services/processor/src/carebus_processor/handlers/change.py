"""The runtime's handler: from a delivery to the `processed_events` row, the patient's state and the message."""

from __future__ import annotations

from typing import Any

import msgspec

from carebus_common.consumer import Change, Delivery, State
from carebus_common.contracts.event import SCHEMA_VERSION, MedicalEvent
from carebus_common.contracts.processed import Flag
from carebus_common.contracts.topics import EVENTS_PROCESSED
from carebus_common.messages import Message
from carebus_processor.handlers.apply import Outcome, apply
from carebus_processor.patient import Patient, patient_document, patient_from_document

__all__ = ["handle_event", "processed_message"]

# CloudEvents context, trace and ours: the processed message is about the same event and keeps its id.
_PASSED_ON = frozenset({"ce_specversion", "ce_id", "ce_source", "ce_time", "traceparent", "organizationId"})


def handle_event(state: State | None, delivery: Delivery[MedicalEvent]) -> Change:
    """Apply the event to the patient in `state`; pure."""
    event = delivery.event
    outcome = apply(patient_from_document(state), event)
    flags = [_flag(flag) for flag in outcome.flags]
    return Change(
        row={
            "type": event.type,
            "ts": event.ts,
            "data": event.data,
            "receivedAt": event.received_at,
            "late": outcome.late,
            "flags": flags,
            "result": {"status": "processed", "message": outcome.message, "error": None},
            "createdAt": delivery.now,
            "updatedAt": delivery.now,
        },
        state=patient_document(outcome.patient),
        messages=(processed_message(event, outcome, delivery),),
    )


def processed_message(event: MedicalEvent, outcome: Outcome, delivery: Delivery[MedicalEvent]) -> Message:
    """The `ProcessedEvent` of this outcome, keyed by patient, with the event's own CloudEvents id."""
    value = {
        "eventId": event.event_id,
        "organizationId": event.organization_id,
        "patientId": event.patient_id,
        "type": event.type,
        "ts": event.ts,
        "receivedAt": event.received_at,
        "data": event.data,
        "processing": {
            "status": "processed",
            "message": outcome.message,
            "late": outcome.late,
            "flags": [_flag(flag) for flag in outcome.flags],
            "processedAt": delivery.now,
        },
        "stay": _stay(outcome.patient),
    }
    headers = [header for header in delivery.headers if header[0] in _PASSED_ON]
    return Message(
        EVENTS_PROCESSED.name,
        event.patient_id.encode(),
        msgspec.json.encode(value),
        (
            *headers,
            ("ce_type", b"medical.event.processed"),
            ("content-type", b"application/json"),
            ("schemaVersion", SCHEMA_VERSION.encode()),
        ),
    )


def _flag(flag: Flag) -> dict[str, Any]:
    return {
        "kind": flag.kind,
        "code": flag.code,
        "value": flag.value,
        "unit": flag.unit,
        "low": flag.low,
        "high": flag.high,
        "direction": flag.direction,
    }


def _stay(patient: Patient) -> dict[str, Any] | None:
    stay = patient.stay
    if stay is None:
        return None
    return {
        "stayId": stay.stay_id,
        "status": "open" if stay.open else "closed",
        "openedAt": stay.opened_at,
        "closedAt": stay.closed_at,
        "location": stay.location,
        "transfers": stay.transfers,
        "treatments": stay.treatment_count,
        "medications": stay.medication_count,
    }
