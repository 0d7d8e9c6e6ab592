"""One event applied to one patient: the table of what each type does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from carebus_common.contracts.event import MedicalEvent, canonical_type
from carebus_common.contracts.processed import Flag
from carebus_processor.handlers import findings, stays
from carebus_processor.patient import Patient

__all__ = ["Outcome", "apply"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The patient afterwards, what was done in a few words, and what was found."""

    patient: Patient
    message: str
    late: bool
    flags: tuple[Flag, ...] = ()


def apply(patient: Patient, event: MedicalEvent) -> Outcome:
    """Apply `event`. It is late if its `ts` is older than the patient's newest so far; it is applied all the same."""
    flags: tuple[Flag, ...] = ()
    match canonical_type(event.type):
        case "admission":
            after, message = stays.admit(patient, event)
        case "transfer":
            after, message = stays.transfer(patient, event)
        case "discharge":
            after, message = stays.discharge(patient, event)
        case "treatment-initiated":
            after, message = stays.initiate_treatment(patient, event)
        case "medication-ordered":
            after, message = stays.order_medication(patient, event)
        case "lab-result":
            flags = findings.lab_result_outside_range(event.data)
            after, message = patient, "flagged" if flags else "stored"
        case "vital-signs":
            flags = findings.abnormal_vital_signs(event.data)
            after, message = patient, "flagged" if flags else "stored"
        case _:
            after, message = patient, "stored"
    ts = _milliseconds(event.ts)
    late = patient.newest_ts is not None and ts < patient.newest_ts
    return Outcome(
        replace(
            after,
            newest_ts=patient.newest_ts if late else ts,
            events=patient.events + 1,
            late_events=patient.late_events + late,
            flags=patient.flags + len(flags),
        ),
        message,
        late,
        flags,
    )


def _milliseconds(ts: datetime) -> datetime:
    """As the store keeps it: lateness must not depend on whether the state was read back in between."""
    return ts.replace(microsecond=ts.microsecond // 1000 * 1000)
