"""One row of a Synthea export as medical events: pure functions of the row.

| row | event types | `ts` |
|---|---|---|
| encounter | `admission` and `discharge` | START and STOP |
| condition | `condition` | START, a date: the encounter's start if it began on that day, else midnight UTC |
| observation, category `laboratory` | `lab-result` | DATE |
| observation, category `vital-signs` | `vital-signs` | DATE |
| observation, any other category | `observation` | DATE |
| procedure | `procedure` | START |
| immunization | `immunization` | DATE |
| medication | `medication-ordered` | START |

An encounter is the one row that makes two events: a stay opens and closes, so there are as many admissions and
as many discharges as encounters. `data` carries the coded fields and no name of anybody. An eventId is the
UUIDv5 of the file's name, the row's content, how many equal rows came before it and the event's type: importing
the same row again makes a duplicate, and a corrected row makes a new event.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid5

import msgspec

from carebus_cli.synthea.reader import Row

__all__ = ["MappedEvent", "Occurrences", "event_types", "events_of"]

# Any fixed namespace does; it only has to stay the same for ever, or a second import would make new events.
_NAMESPACE: Final = UUID("0d2bbf0e-41f4-5d2c-8d53-5a3c0c3b6e11")
_INSTANT: Final = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
_DATE: Final = re.compile(r"^\d{4}-\d\d-\d\d$")

# LOINC codes of the vital signs that have a field of their own.
_VITAL_SIGNS: Final = {
    "8867-4": "heartRate",
    "9279-1": "respiratoryRate",
    "8480-6": "systolicBloodPressure",
    "8462-4": "diastolicBloodPressure",
    "8310-5": "bodyTemperature",
    "2708-6": "oxygenSaturation",
    "59408-5": "oxygenSaturation",
}
# The code systems of files without a SYSTEM column, as the data dictionary names them.
_SYSTEMS: Final = {
    "encounters": "http://snomed.info/sct",
    "immunizations": "http://hl7.org/fhir/sid/cvx",
    "medications": "http://www.nlm.nih.gov/research/umls/rxnorm",
    "observations": "http://loinc.org",
}
# Synthea also codes a few observations in no system, such as QALY.
_LOINC: Final = re.compile(r"^\d{1,7}-\d$")
_OBSERVATION_TYPES: Final = {"laboratory": "lab-result", "vital-signs": "vital-signs"}
_TYPES: Final[dict[str, tuple[str, ...]]] = {
    "encounters": ("admission", "discharge"),
    "conditions": ("condition",),
    "procedures": ("procedure",),
    "immunizations": ("immunization",),
    "medications": ("medication-ordered",),
}
# What comes first of one encounter's events of the same second.
_PRECEDENCE: Final = {
    name: rank
    for rank, name in enumerate(
        (
            "admission",
            "condition",
            "vital-signs",
            "observation",
            "lab-result",
            "procedure",
            "immunization",
            "medication-ordered",
            "discharge",
        )
    )
}

Occurrences = Counter[tuple[str, str]]


class MappedEvent(NamedTuple):
    """An event to post: its place in time, whose it is, and its JSON.

    `order` sorts events in time. Of events of the same second, those of the encounter that began earlier come
    first, so that one encounter is discharged before the next is admitted; within an encounter the admission
    comes first and the discharge last.
    """

    order: tuple[str, str, str, int]
    patient_id: str
    type: str
    event_id: UUID
    body: bytes
    file: str
    line: int


def event_types(row: Row) -> tuple[str, ...]:
    """The types of the events that this row must become, whether or not its values are good."""
    if row.file == "observations":
        return (_OBSERVATION_TYPES.get(row.values["CATEGORY"], "observation"),)
    return _TYPES[row.file]


def events_of(row: Row, encounter_starts: Mapping[str, str], seen: Occurrences) -> Iterator[MappedEvent]:
    """The row's events. `encounter_starts` gives the START of each good encounter; `seen` counts rows of equal content.

    Raises BadRow if the row names no patient or a value breaks its column's rule.
    """
    values = row.values
    patient_id = values["PATIENT"]
    if not 1 <= len(patient_id) <= 128:
        raise row.bad("PATIENT must have 1 to 128 characters")
    content = "\x1f".join(values.values())
    occurrence = seen[row.file, content]
    seen[row.file, content] += 1

    is_encounter = row.file == "encounters"
    encounter_id = values["Id" if is_encounter else "ENCOUNTER"]
    started = values["START"] if is_encounter else encounter_starts.get(encounter_id)
    for event_type in event_types(row):
        ts = _time_of(row, event_type, started)
        event_id = uuid5(_NAMESPACE, f"{row.file}\n{content}\n{occurrence}\n{event_type}")
        event = {
            "eventId": str(event_id),
            "patientId": patient_id,
            "type": event_type,
            "ts": ts,
            "data": _data(row, encounter_id),
        }
        order = (ts, started or ts, encounter_id, _PRECEDENCE[event_type])
        yield MappedEvent(order, patient_id, event_type, event_id, msgspec.json.encode(event), row.path.name, row.line)


def _time_of(row: Row, event_type: str, encounter_start: str | None) -> str:
    if event_type == "discharge":
        started, stopped = _instant(row, "START"), _instant(row, "STOP")
        if stopped < started:
            raise row.bad("STOP must not be before START")
        return stopped
    if event_type == "condition":
        date = row.values["START"]
        if _DATE.match(date):
            if encounter_start and encounter_start.startswith(date):
                return encounter_start
            return _valid(row, "START", f"{date}T00:00:00Z")
    return _instant(row, "DATE" if "DATE" in row.values else "START")


def _instant(row: Row, column: str) -> str:
    value = row.values[column]
    if not _INSTANT.match(value):
        raise row.bad(f"{column} must be a UTC time such as 2026-01-31T08:15:00Z")
    return _valid(row, column, value)


def _valid(row: Row, column: str, value: str) -> str:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise row.bad(f"{column} must be a date of the calendar") from None
    return value


def _data(row: Row, encounter_id: str) -> dict[str, Any]:
    values = row.values
    data: dict[str, Any] = {
        "encounterId": encounter_id,
        "code": values["CODE"],
        "system": values.get("SYSTEM") or _system(row),
        "description": values["DESCRIPTION"],
        "reasonCode": values.get("REASONCODE"),
        "reasonDescription": values.get("REASONDESCRIPTION"),
    }
    match row.file:
        case "encounters":
            data |= {"encounterClass": values["ENCOUNTERCLASS"], "facilityId": values.get("ORGANIZATION")}
        case "conditions":
            data |= {"onset": values["START"], "abatement": values["STOP"]}
        case "procedures":
            data |= {"endedAt": values["STOP"]}
        case "medications":
            data |= {"endsAt": values["STOP"], "dispenses": _whole(row, "DISPENSES")}
        case "observations":
            data |= {"category": values["CATEGORY"], "value": _value(row), "unit": values["UNITS"]}
            measure = _VITAL_SIGNS.get(values["CODE"])
            if measure and values["CATEGORY"] == "vital-signs":
                data[measure] = data["value"]
    return {name: value for name, value in data.items() if value not in (None, "")}


def _system(row: Row) -> str | None:
    if row.file == "observations" and not _LOINC.match(row.values["CODE"]):
        return None
    return _SYSTEMS.get(row.file)


def _value(row: Row) -> float | str:
    value = row.values["VALUE"]
    if row.values["TYPE"] != "numeric":
        return value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise row.bad("VALUE must be a finite number where TYPE is numeric")
    return number


def _whole(row: Row, column: str) -> int | None:
    value = row.values.get(column)
    if not value:
        return None
    if not value.isascii() or not value.isdigit():
        raise row.bad(f"{column} must be a whole number")
    return int(value)
