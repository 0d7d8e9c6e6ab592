"""A stay opens with an admission, moves with a transfer, closes with a discharge; treatments and orders join it.

Events take effect in the order in which they were accepted; the clinical time `ts` only marks some as late.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from carebus_common.contracts.event import MedicalEvent
from carebus_processor.patient import Patient, Stay

__all__ = ["admit", "discharge", "initiate_treatment", "order_medication", "transfer"]


def admit(patient: Patient, event: MedicalEvent) -> tuple[Patient, str]:
    """Open a stay. One that is still open ends here: nobody stays twice at once."""
    stay = Stay(
        stay_id=_text(event.data, "stayId", "encounterId") or str(event.event_id),
        opened_at=event.ts,
        location=_text(event.data, "location", "ward", "unit"),
    )
    superseded = patient.stay is not None and patient.stay.open
    message = "stay opened; the earlier one was still open" if superseded else "stay opened"
    return replace(patient, stay=stay), message


def transfer(patient: Patient, event: MedicalEvent) -> tuple[Patient, str]:
    """Move the open stay."""
    stay = patient.stay
    if stay is None or not stay.open:
        return patient, "stored; no open stay to move"
    location = _text(event.data, "to", "location", "ward", "unit") or stay.location
    return replace(patient, stay=replace(stay, location=location, transfers=stay.transfers + 1)), "stay moved"


def discharge(patient: Patient, event: MedicalEvent) -> tuple[Patient, str]:
    """Close the open stay."""
    stay = patient.stay
    if stay is None or not stay.open:
        return patient, "stored; no open stay to close"
    return replace(patient, stay=replace(stay, closed_at=event.ts)), "stay closed"


def initiate_treatment(patient: Patient, event: MedicalEvent) -> tuple[Patient, str]:
    """Let the treatment join the open stay."""
    stay = patient.stay
    if stay is None or not stay.open:
        return patient, "stored; no open stay to join"
    return replace(patient, stay=stay.with_treatment(_entry(event))), "treatment joined the stay"


def order_medication(patient: Patient, event: MedicalEvent) -> tuple[Patient, str]:
    """Let the order join the open stay."""
    stay = patient.stay
    if stay is None or not stay.open:
        return patient, "stored; no open stay to join"
    return replace(patient, stay=stay.with_medication(_entry(event))), "medication joined the stay"


def _entry(event: MedicalEvent) -> dict[str, Any]:
    return {
        "eventId": str(event.event_id),
        "ts": event.ts,
        "code": _text(event.data, "code"),
        "description": _text(event.data, "description", "name", "medication", "treatment"),
    }


def _text(data: dict[str, Any], *names: str) -> str | None:
    """The first of these fields that is a text; cut, since the state is rewritten with each event."""
    for name in names:
        value = data.get(name)
        if isinstance(value, str) and value:
            return value[:200]
    return None
