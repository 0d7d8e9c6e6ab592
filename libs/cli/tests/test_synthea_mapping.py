from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from carebus_cli.synthea.mapping import MappedEvent, events_of
from carebus_cli.synthea.reader import BadRow, Row
from carebus_common.contracts.event import SubmittedEvent
from carebus_common.contracts.event_types import data_errors

ENCOUNTER = {
    "Id": "e1",
    "START": "2024-12-22T20:59:17Z",
    "STOP": "2024-12-22T22:14:36Z",
    "PATIENT": "p1",
    "ORGANIZATION": "o1",
    "ENCOUNTERCLASS": "emergency",
    "CODE": "50849002",
    "DESCRIPTION": "Emergency room admission",
    "REASONCODE": "",
    "REASONDESCRIPTION": "",
}
OBSERVATION = {
    "DATE": "2024-12-22T20:59:17Z",
    "PATIENT": "p1",
    "ENCOUNTER": "e1",
    "CATEGORY": "vital-signs",
    "CODE": "8867-4",
    "DESCRIPTION": "Heart rate",
    "VALUE": "72.9",
    "UNITS": "/min",
    "TYPE": "numeric",
}
CONDITION = {
    "START": "2024-12-22",
    "STOP": "",
    "PATIENT": "p1",
    "ENCOUNTER": "e1",
    "CODE": "307426000",
    "DESCRIPTION": "Acute infective cystitis (disorder)",
}


def row(file: str, base: dict[str, str], **changes: str) -> Row:
    return Row(file, Path(f"{file}.csv"), 7, {**base, **changes})


def mapped(given: Row, starts: dict[str, str] | None = None, seen: Counter[Any] | None = None) -> list[MappedEvent]:
    return list(events_of(given, starts or {}, Counter() if seen is None else seen))


def body(event: MappedEvent) -> dict[str, Any]:
    return dict(msgspec.json.decode(event.body))


def test_an_encounter_opens_a_stay_at_its_start_and_closes_it_at_its_stop() -> None:
    admission, discharge = map(body, mapped(row("encounters", ENCOUNTER)))
    assert (admission["type"], admission["ts"]) == ("admission", "2024-12-22T20:59:17Z")
    assert (discharge["type"], discharge["ts"]) == ("discharge", "2024-12-22T22:14:36Z")
    assert admission["data"] == {
        "encounterId": "e1",
        "code": "50849002",
        "system": "http://snomed.info/sct",
        "description": "Emergency room admission",
        "encounterClass": "emergency",
        "facilityId": "o1",
    }
    assert admission["eventId"] != discharge["eventId"]


@pytest.mark.parametrize(
    ("code", "field"),
    [
        ("8867-4", "heartRate"),
        ("9279-1", "respiratoryRate"),
        ("8480-6", "systolicBloodPressure"),
        ("8462-4", "diastolicBloodPressure"),
        ("8310-5", "bodyTemperature"),
        ("2708-6", "oxygenSaturation"),
        ("59408-5", "oxygenSaturation"),
    ],
)
def test_a_vital_sign_is_also_a_named_field_with_its_number(code: str, field: str) -> None:
    (event,) = mapped(row("observations", OBSERVATION, CODE=code))
    assert event.type == "vital-signs"
    assert body(event)["data"][field] == 72.9


def test_a_vital_sign_without_a_field_of_its_own_keeps_code_value_and_unit() -> None:
    (event,) = mapped(row("observations", OBSERVATION, CODE="29463-7", DESCRIPTION="Body Weight", UNITS="kg"))
    assert body(event)["data"] == {
        "encounterId": "e1",
        "code": "29463-7",
        "system": "http://loinc.org",
        "description": "Body Weight",
        "category": "vital-signs",
        "value": 72.9,
        "unit": "kg",
    }


@pytest.mark.parametrize(
    ("category", "expected"),
    [("laboratory", "lab-result"), ("survey", "observation"), ("", "observation"), ("exam", "observation")],
)
def test_the_category_of_an_observation_decides_its_type(category: str, expected: str) -> None:
    (event,) = mapped(row("observations", OBSERVATION, CATEGORY=category))
    assert event.type == expected
    assert "heartRate" not in body(event)["data"]


def test_a_text_value_stays_text() -> None:
    (event,) = mapped(row("observations", OBSERVATION, CATEGORY="laboratory", VALUE="12", TYPE="text"))
    assert body(event)["data"]["value"] == "12"


def test_an_observation_that_is_not_coded_in_loinc_names_no_system() -> None:
    (event,) = mapped(row("observations", OBSERVATION, CATEGORY="", CODE="QALY"))
    assert "system" not in body(event)["data"]


def test_a_condition_happens_at_the_start_of_its_encounter_if_that_began_on_the_same_day() -> None:
    (same_day,) = mapped(row("conditions", CONDITION), {"e1": ENCOUNTER["START"]})
    (earlier,) = mapped(row("conditions", CONDITION, START="2024-12-01"), {"e1": ENCOUNTER["START"]})
    assert body(same_day)["ts"] == ENCOUNTER["START"]
    assert body(earlier)["ts"] == "2024-12-01T00:00:00Z"


def test_the_same_row_read_again_has_the_same_event_id() -> None:
    first, again = mapped(row("conditions", CONDITION)), mapped(row("conditions", CONDITION))
    assert first == again


def test_equal_rows_in_one_file_are_different_events() -> None:
    seen: Counter[Any] = Counter()
    ids = {mapped(row("observations", OBSERVATION), seen=seen)[0].event_id for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (row("encounters", ENCOUNTER, START="yesterday"), "START must be a UTC time such as 2026-01-31T08:15:00Z"),
        (row("encounters", ENCOUNTER, STOP=""), "STOP must be a UTC time such as 2026-01-31T08:15:00Z"),
        (row("encounters", ENCOUNTER, STOP="2024-12-21T00:00:00Z"), "STOP must not be before START"),
        (row("observations", OBSERVATION, DATE="2024-02-30T00:00:00Z"), "DATE must be a date of the calendar"),
        (row("observations", OBSERVATION, VALUE="high"), "VALUE must be a finite number where TYPE is numeric"),
        (row("observations", OBSERVATION, VALUE="1e999"), "VALUE must be a finite number where TYPE is numeric"),
        (row("observations", OBSERVATION, VALUE="nan"), "VALUE must be a finite number where TYPE is numeric"),
        (row("conditions", CONDITION, PATIENT=""), "PATIENT must have 1 to 128 characters"),
        (row("conditions", CONDITION, START="2024-13-01"), "START must be a date of the calendar"),
    ],
)
def test_a_bad_value_is_told_with_file_line_and_rule_but_not_with_the_value(given: Row, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        mapped(given)
    assert str(caught.value) == f"{given.file}.csv:7: {reason}"


def test_every_event_is_one_that_ingest_takes() -> None:
    for given in (row("encounters", ENCOUNTER), row("observations", OBSERVATION), row("conditions", CONDITION)):
        for event in mapped(given):
            submitted = SubmittedEvent.model_validate(body(event))
            assert submitted.event_id == event.event_id
            assert submitted.patient_id == event.patient_id == "p1"
            assert data_errors(submitted.type, submitted.data) == []
