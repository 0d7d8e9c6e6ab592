"""A patient's state in the processor: what handlers see and change. Values only; every list is bounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

__all__ = ["NEW_PATIENT", "Patient", "Stay", "patient_document", "patient_from_document"]

# A stay of months has thousands of orders; the state is rewritten with each event, so it keeps the newest.
KEPT_PER_STAY: Final = 50


@dataclass(frozen=True, slots=True)
class Stay:
    """From an admission to its discharge. `treatments` and `medications` hold the newest 50, newest last."""

    stay_id: str
    opened_at: datetime
    closed_at: datetime | None = None
    location: str | None = None
    transfers: int = 0
    treatment_count: int = 0
    medication_count: int = 0
    treatments: tuple[Mapping[str, Any], ...] = ()
    medications: tuple[Mapping[str, Any], ...] = ()

    @property
    def open(self) -> bool:
        return self.closed_at is None

    def with_treatment(self, entry: Mapping[str, Any]) -> Stay:
        return replace(
            self,
            treatment_count=self.treatment_count + 1,
            treatments=(*self.treatments, entry)[-KEPT_PER_STAY:],
        )

    def with_medication(self, entry: Mapping[str, Any]) -> Stay:
        return replace(
            self,
            medication_count=self.medication_count + 1,
            medications=(*self.medications, entry)[-KEPT_PER_STAY:],
        )


@dataclass(frozen=True, slots=True)
class Patient:
    """The current or last stay, the newest clinical time seen, and counts."""

    stay: Stay | None = None
    newest_ts: datetime | None = None
    events: int = 0
    late_events: int = 0
    flags: int = 0


NEW_PATIENT: Final = Patient()


def patient_document(patient: Patient) -> dict[str, Any]:
    stay = patient.stay
    return {
        "stay": None
        if stay is None
        else {
            "stayId": stay.stay_id,
            "openedAt": stay.opened_at,
            "closedAt": stay.closed_at,
            "location": stay.location,
            "transfers": stay.transfers,
            "treatmentCount": stay.treatment_count,
            "medicationCount": stay.medication_count,
            "treatments": list(stay.treatments),
            "medications": list(stay.medications),
        },
        "newestTs": patient.newest_ts,
        "events": patient.events,
        "lateEvents": patient.late_events,
        "flags": patient.flags,
    }


def patient_from_document(document: Mapping[str, Any] | None) -> Patient:
    if document is None:
        return NEW_PATIENT
    stay = document["stay"]
    return Patient(
        stay=None
        if stay is None
        else Stay(
            stay_id=stay["stayId"],
            opened_at=stay["openedAt"],
            closed_at=stay["closedAt"],
            location=stay["location"],
            transfers=stay["transfers"],
            treatment_count=stay["treatmentCount"],
            medication_count=stay["medicationCount"],
            treatments=tuple(stay["treatments"]),
            medications=tuple(stay["medications"]),
        ),
        newest_ts=document["newestTs"],
        events=document["events"],
        late_events=document["lateEvents"],
        flags=document["flags"],
    )
