"""What each type of event does to its patient; values in, values out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import bson
import pytest

from carebus_common.consumer import Delivery, Position
from carebus_common.contracts.event import MedicalEvent
from carebus_common.contracts.processed import ProcessedEvent
from carebus_processor.handlers import apply, handle_event
from carebus_processor.handlers.findings import VITAL_SIGNS
from carebus_processor.patient import (
    KEPT_PER_STAY,
    NEW_PATIENT,
    Patient,
    patient_document,
    patient_from_document,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def event(event_type: str, *, at: datetime = NOON, **data: Any) -> MedicalEvent:
    return MedicalEvent(
        event_id=uuid4(),
        organization_id="org",
        patient_id="p1",
        type=event_type,
        ts=at,
        received_at=NOON,
        data=data,
    )


def vital_sign(name: str, value: float) -> MedicalEvent:
    measured: dict[str, Any] = {name: value}
    return event("vital-signs", **measured)


def after(*events: MedicalEvent) -> Patient:
    patient = NEW_PATIENT
    for one in events:
        patient = apply(patient, one).patient
    return patient


def through_bson(patient: Patient) -> Patient:
    options: bson.CodecOptions[dict[str, Any]] = bson.CodecOptions(tz_aware=True)
    return patient_from_document(bson.decode(bson.encode(patient_document(patient)), options))


def delivery(one: MedicalEvent) -> Delivery[MedicalEvent]:
    return Delivery(one, Position("t", 3, 7), NOON, (("ce_id", str(one.event_id).encode()), ("secret", b"x")))


def test_an_admission_opens_a_stay_a_transfer_moves_it_and_a_discharge_closes_it() -> None:
    admitted = after(event("admission", encounterId="e1", location="ER"))
    assert admitted.stay is not None
    assert (admitted.stay.stay_id, admitted.stay.location, admitted.stay.open) == ("e1", "ER", True)

    moved = apply(admitted, event("transfer", to="ICU")).patient
    assert moved.stay is not None
    assert (moved.stay.location, moved.stay.transfers) == ("ICU", 1)

    closed = apply(moved, event("discharge", at=NOON + timedelta(days=2))).patient
    assert closed.stay is not None
    assert closed.stay.closed_at == NOON + timedelta(days=2)


def test_a_stay_without_an_id_of_its_own_takes_its_admissions_event_id() -> None:
    admission = event("admission")
    stay = after(admission).stay
    assert stay is not None
    assert stay.stay_id == str(admission.event_id)


def test_an_admission_during_a_stay_opens_the_next_one_and_says_so() -> None:
    outcome = apply(after(event("admission", stayId="a")), event("admission", stayId="b"))
    assert outcome.patient.stay is not None
    assert outcome.patient.stay.stay_id == "b"
    assert "still open" in outcome.message


@pytest.mark.parametrize("event_type", ["transfer", "discharge", "treatment-initiated", "medication-ordered"])
def test_without_an_open_stay_an_event_is_stored_and_changes_no_stay(event_type: str) -> None:
    for patient in (NEW_PATIENT, after(event("admission"), event("discharge"))):
        outcome = apply(patient, event(event_type))
        assert outcome.patient.stay == patient.stay
        assert outcome.message.startswith("stored; no open stay")


def test_treatments_and_medications_join_the_open_stay() -> None:
    stay = after(
        event("admission"),
        event("treatment-initiated", code="T1", description="Dialysis"),
        event("medication-ordered", code="M1", description="Amoxicillin"),
    ).stay
    assert stay is not None
    assert [entry["code"] for entry in stay.treatments] == ["T1"]
    assert [entry["description"] for entry in stay.medications] == ["Amoxicillin"]


def test_a_long_stay_keeps_its_newest_orders_and_the_count_of_all() -> None:
    stay = after(event("admission"), *(event("medication-ordered", code=str(n)) for n in range(200))).stay
    assert stay is not None
    assert stay.medication_count == 200
    assert [entry["code"] for entry in stay.medications] == [str(n) for n in range(200 - KEPT_PER_STAY, 200)]


@pytest.mark.parametrize(
    ("value", "expected"), [(3.8, "low"), (3.9, None), (5.6, None), (5.7, "high"), ("high", None), (True, None)]
)
def test_a_lab_result_is_flagged_outside_its_inclusive_reference_range(value: Any, expected: str | None) -> None:
    outcome = apply(
        NEW_PATIENT, event("lab-result", code="2345-7", value=value, referenceRange={"low": 3.9, "high": 5.6})
    )
    assert [flag.direction for flag in outcome.flags] == ([expected] if expected else [])
    assert outcome.patient.flags == len(outcome.flags)


def test_a_lab_result_without_a_range_or_with_one_bound_is_judged_by_what_there_is() -> None:
    assert not apply(NEW_PATIENT, event("lab-result", value=1e9)).flags
    assert apply(NEW_PATIENT, event("lab-result", value=7, referenceRange={"high": 5})).flags[0].code == "unknown"
    assert not apply(NEW_PATIENT, event("lab-result", value=7, referenceRange={"low": 5})).flags
    assert not apply(NEW_PATIENT, event("lab-result", value=7, referenceRange="5-6")).flags


@pytest.mark.parametrize("name", VITAL_SIGNS)
def test_a_vital_sign_is_flagged_just_outside_its_band_and_not_at_its_edges(name: str) -> None:
    band = VITAL_SIGNS[name]
    for edge, beyond, direction in ((band.low, -0.1, "low"), (band.high, 0.1, "high")):
        if edge is None:
            continue
        assert not apply(NEW_PATIENT, vital_sign(name, edge)).flags
        (flag,) = apply(NEW_PATIENT, vital_sign(name, edge + beyond)).flags
        assert (flag.code, flag.direction, flag.low, flag.high) == (name, direction, band.low, band.high)


def test_every_abnormal_vital_sign_of_one_event_is_flagged() -> None:
    flags = apply(NEW_PATIENT, event("vital-signs", heartRate=140, oxygenSaturation=80, bodyTemperature=37)).flags
    assert [flag.code for flag in flags] == ["oxygenSaturation", "heartRate"]


def test_an_event_older_than_the_patients_newest_is_applied_and_marked_late() -> None:
    patient = after(event("admission", at=NOON))
    late = apply(patient, event("discharge", at=NOON - timedelta(milliseconds=1)))
    assert late.late
    assert late.patient.stay is not None
    assert not late.patient.stay.open
    assert late.patient.newest_ts == NOON
    assert late.patient.late_events == 1
    assert not apply(patient, event("discharge", at=NOON)).late


def test_lateness_does_not_depend_on_what_the_store_rounds_off() -> None:
    patient = after(event("note", at=NOON.replace(microsecond=123_900)))
    read_back = patient_from_document(
        bson.decode(bson.encode(patient_document(patient)), bson.CodecOptions(tz_aware=True))
    )
    same = event("note", at=NOON.replace(microsecond=123_400))
    assert apply(patient, same).late is apply(read_back, same).late is False


def test_upper_snake_names_are_the_same_types() -> None:
    assert after(event("ADMISSION")).stay is not None
    assert apply(NEW_PATIENT, event("LAB_RESULT", value=9, referenceRange={"high": 5})).flags


def test_an_unknown_type_is_stored() -> None:
    outcome = apply(NEW_PATIENT, event("diet.changed", anything=[1, {"a": None}]))
    assert (outcome.message, outcome.patient.events, outcome.patient.stay) == ("stored", 1, None)


def test_state_survives_the_store_unchanged() -> None:
    patient = after(
        event("admission", location="A"), event("treatment-initiated", code="T"), event("vital-signs", heartRate=140)
    )
    assert through_bson(patient) == patient


def test_the_handler_returns_the_row_the_state_and_the_message() -> None:
    one = event("lab-result", code="2345-7", value=9, referenceRange={"high": 5})
    change = handle_event(None, delivery(one))
    assert change.row["type"] == "lab-result"
    assert change.row["data"] == one.data
    assert change.row["result"] == {"status": "processed", "message": "flagged", "error": None}
    assert change.state == patient_document(apply(NEW_PATIENT, one).patient)
    (message,) = change.messages
    assert message.key == b"p1"
    assert message.value is not None
    sent = ProcessedEvent.model_validate_json(message.value)
    assert (sent.event_id, sent.data, sent.ts) == (one.event_id, one.data, one.ts)
    assert [flag.direction for flag in sent.processing.flags] == ["high"]
    assert sent.processing.processed_at == NOON


def test_the_message_of_a_stay_meets_the_contract() -> None:
    state = handle_event(None, delivery(event("admission", location="ER"))).state
    (message,) = handle_event(state, delivery(event("discharge"))).messages
    assert message.value is not None
    stay = ProcessedEvent.model_validate_json(message.value).stay
    assert stay is not None
    assert (stay.status, stay.location, stay.closed_at) == ("closed", "ER", NOON)


def test_the_message_passes_the_events_context_on_and_nothing_else() -> None:
    one = event("note")
    (message,) = handle_event(None, delivery(one)).messages
    names = [name for name, _ in message.headers]
    assert names == ["ce_id", "ce_type", "content-type", "schemaVersion"]


def test_the_same_delivery_gives_the_same_change() -> None:
    given = delivery(event("admission", location="ER"))
    assert handle_event(None, given) == handle_event(None, given)
