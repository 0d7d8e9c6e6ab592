"""A day of a hospital that never was, as events in the order in which its systems would post them.

The same seed and run make the same day, byte for byte. Patients are admitted, moved, measured, treated and
discharged; some measurements lie outside their range; a few results come in late, some systems post types nobody
knows, and about three in a hundred events are posted again, as by a sender that missed the answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

__all__ = ["SampleEvent", "sample_day"]

_NAMESPACE: Final = UUID("7f0f3c52-8f1b-5f63-9c55-2b9a6d0c4e21")
_DAY: Final = datetime(2026, 3, 17, tzinfo=UTC)

_RESENT: Final = 0.03
_LATE_LABS: Final = 0.04
_UNKNOWN: Final = 0.012
_OUT_OF_RANGE: Final = 0.12

_WARDS: Final = ("medicine-3", "medicine-4", "surgery-2", "cardiology-5", "geriatrics-6")
# LOINC code, description, unit, low, high.
_LABS: Final = (
    ("2823-3", "Potassium", "mmol/L", 3.5, 5.1),
    ("2951-2", "Sodium", "mmol/L", 136.0, 145.0),
    ("2345-7", "Glucose", "mg/dL", 70.0, 99.0),
    ("2160-0", "Creatinine", "mg/dL", 0.6, 1.3),
    ("718-7", "Hemoglobin", "g/dL", 12.0, 17.5),
    ("6690-2", "Leukocytes", "10*3/uL", 4.5, 11.0),
    ("777-3", "Platelets", "10*3/uL", 150.0, 400.0),
)
# RxNorm code and description.
_MEDICATIONS: Final = (
    ("313782", "Acetaminophen 325 MG Oral Tablet"),
    ("308136", "Amlodipine 2.5 MG Oral Tablet"),
    ("309362", "Clopidogrel 75 MG Oral Tablet"),
    ("197511", "Ciprofloxacin 250 MG Oral Tablet"),
    ("1659149", "Piperacillin / Tazobactam Injection"),
)
# SNOMED CT code and description.
_TREATMENTS: Final = (
    ("40701008", "Echocardiography"),
    ("243120004", "Regimes and therapies"),
    ("71181003", "Oxygen administration by nasal cannula"),
    ("91602002", "Thoracentesis"),
)
_UNKNOWN_TYPES: Final = ("diet-changed", "bed.cleaned", "CONSULT_REQUESTED", "visitor.registered")


@dataclass(frozen=True, slots=True)
class SampleEvent:
    """An event as it is posted; `resent` if the same event was posted before."""

    body: dict[str, Any]
    resent: bool = False

    @property
    def patient_id(self) -> str:
        return str(self.body["patientId"])

    @property
    def event_id(self) -> str:
        return str(self.body["eventId"])


@dataclass(frozen=True, slots=True)
class _Happening:
    """Something of one patient: when it happened, when it is posted (later than that for a late result)."""

    ts: datetime
    type: str
    data: dict[str, Any]
    posted_at: datetime
    number: int


@dataclass(slots=True)
class _Course:
    """One patient's day while it is being made up."""

    rng: random.Random
    happenings: list[_Happening] = field(default_factory=list)

    def add(self, ts: datetime, event_type: str, data: dict[str, Any], *, delay: timedelta = timedelta()) -> None:
        self.happenings.append(_Happening(ts, event_type, data, ts + delay, len(self.happenings)))


def sample_day(run: str, *, patients: int = 150, seed: int = 20260317) -> list[SampleEvent]:
    """The day's events in posting order, some 4,000 for 150 patients.

    `run` (letters, digits, hyphens) becomes part of the patient ids and event ids, so that two runs share none.
    """
    rng = random.Random(f"{seed}")  # noqa: S311
    posted: list[tuple[datetime, int, int, dict[str, Any], bool]] = []
    for index in range(patients):
        patient_id = f"{run}-p{index + 1:04d}"
        for happening in _course(random.Random(f"{seed}/{index}")):  # noqa: S311
            body = {
                "eventId": str(uuid5(_NAMESPACE, f"{patient_id}/{happening.number}")),
                "patientId": patient_id,
                "type": happening.type,
                "ts": happening.ts.isoformat().replace("+00:00", "Z"),
                "data": happening.data,
            }
            posted.append((happening.posted_at, index, happening.number, body, False))
            if rng.random() < _RESENT:
                again = happening.posted_at + timedelta(seconds=rng.choice((0, 5, 30, 900)))
                posted.append((again, index, happening.number, body, True))
    posted.sort(key=lambda entry: (entry[0], entry[1], entry[2], entry[4]))
    return [SampleEvent(body, resent) for *_, body, resent in posted]


def _course(rng: random.Random) -> list[_Happening]:
    """One patient's day. A stay is admitted (some the evening before), may move, and mostly ends before midnight."""
    course = _Course(rng)
    if rng.random() < 0.4:
        admitted, source = _DAY - timedelta(minutes=rng.randrange(30, 420)), "elective"
    else:
        admitted, source = _DAY + timedelta(minutes=rng.randrange(0, 1080)), "emergency"
    ward = rng.choice(_WARDS)
    location = "emergency" if source == "emergency" else ward
    encounter_id = f"enc-{rng.getrandbits(40):010x}"
    end = _DAY + timedelta(days=1)
    discharged = min(end, admitted + timedelta(minutes=rng.randrange(300, 1700)))
    course.add(admitted, "admission", {"encounterId": encounter_id, "location": location, "admissionSource": source})
    if source == "emergency":
        _transfer(course, encounter_id, location, ward, after=admitted, before=discharged)
    intensive = rng.random() < 0.12
    if intensive:
        after = admitted + timedelta(hours=2)
        _transfer(course, encounter_id, ward, "intensive-care-1", after=after, before=discharged)

    for ts in _rounds(rng, admitted, discharged, hours=1.0 if intensive else 1.5):
        course.add(ts, "vital-signs", {"encounterId": encounter_id, **_vital_signs(rng)})
    for ts in _rounds(rng, admitted + timedelta(minutes=20), discharged, hours=4.0):
        for lab in rng.sample(_LABS, k=rng.randrange(2, 5)):
            late = rng.random() < _LATE_LABS
            delay = timedelta(minutes=rng.randrange(90, 300)) if late else timedelta()
            course.add(ts, "lab-result", {"encounterId": encounter_id, **_lab_result(rng, lab)}, delay=delay)
    for ts in _rounds(rng, admitted + timedelta(minutes=45), discharged, hours=5.0):
        code, description = rng.choice(_MEDICATIONS)
        course.add(ts, "medication-ordered", {"encounterId": encounter_id, "code": code, "description": description})
    if rng.random() < 0.5:
        code, description = rng.choice(_TREATMENTS)
        ts = admitted + (discharged - admitted) * rng.uniform(0.2, 0.8)
        course.add(
            ts.replace(microsecond=0),
            "treatment-initiated",
            {"encounterId": encounter_id, "code": code, "description": description},
        )
    for happening in list(course.happenings):
        if rng.random() < _UNKNOWN:
            course.add(happening.ts + timedelta(minutes=7), rng.choice(_UNKNOWN_TYPES), {"note": "as sent"})
    if discharged < end:
        disposition = rng.choice(("home", "home", "home", "rehabilitation"))
        course.add(discharged, "discharge", {"encounterId": encounter_id, "disposition": disposition})
    return course.happenings


def _transfer(
    course: _Course, encounter_id: str, origin: str, destination: str, *, after: datetime, before: datetime
) -> None:
    ts = after + timedelta(minutes=course.rng.randrange(60, 240))
    if ts < before:
        course.add(ts, "transfer", {"encounterId": encounter_id, "from": origin, "to": destination})


def _rounds(rng: random.Random, begin: datetime, end: datetime, *, hours: float) -> Iterator[datetime]:
    """Times about `hours` apart, from shortly after `begin` to before `end`."""
    ts = begin + timedelta(minutes=rng.randrange(5, 30))
    while ts < end:
        yield ts
        ts += timedelta(seconds=round(3600 * hours * rng.uniform(0.7, 1.3)))


def _vital_signs(rng: random.Random) -> dict[str, float]:
    ill = rng.random() < _OUT_OF_RANGE
    return {
        "heartRate": rng.randrange(118, 150) if ill else rng.randrange(58, 89),
        "respiratoryRate": rng.randrange(24, 32) if ill else rng.randrange(12, 20),
        "systolicBloodPressure": rng.randrange(82, 92) if ill else rng.randrange(112, 139),
        "diastolicBloodPressure": rng.randrange(45, 58) if ill else rng.randrange(62, 89),
        "bodyTemperature": round(rng.uniform(38.4, 40.1) if ill else rng.uniform(36.3, 37.6), 1),
        "oxygenSaturation": rng.randrange(86, 92) if ill else rng.randrange(96, 100),
    }


def _lab_result(rng: random.Random, lab: tuple[str, str, str, float, float]) -> dict[str, Any]:
    code, description, unit, low, high = lab
    span = high - low
    if rng.random() < _OUT_OF_RANGE:
        value = rng.choice((low - span * rng.uniform(0.05, 0.4), high + span * rng.uniform(0.05, 0.8)))
    else:
        value = rng.uniform(low + 0.05 * span, high - 0.05 * span)
    return {
        "code": code,
        "description": description,
        "value": round(max(0.1, value), 2),
        "unit": unit,
        "referenceRange": {"low": low, "high": high},
    }
