from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import Any

from carebus_cli.demo.sample_day import SampleEvent, sample_day
from carebus_common.contracts.event import SubmittedEvent
from carebus_common.contracts.event_types import data_errors

DAY = sample_day("run1")


def by_patient(day: list[SampleEvent]) -> dict[str, list[dict[str, Any]]]:
    patients: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in day:
        if not event.resent:
            patients[event.patient_id].append(event.body)
    return patients


def test_the_same_run_makes_the_same_day() -> None:
    assert sample_day("run1") == DAY


def test_two_runs_share_neither_patients_nor_events() -> None:
    other = sample_day("run2")
    assert len(other) == len(DAY)
    assert not {event.patient_id for event in DAY} & {event.patient_id for event in other}
    assert not {event.event_id for event in DAY} & {event.event_id for event in other}


def test_a_day_has_the_size_and_the_mix_of_a_hospital() -> None:
    assert 3000 <= len(DAY) <= 5000
    assert len({event.patient_id for event in DAY}) == 150
    types = Counter(event.body["type"] for event in DAY)
    known = {
        "admission",
        "transfer",
        "discharge",
        "vital-signs",
        "lab-result",
        "medication-ordered",
        "treatment-initiated",
    }
    assert all(types[name] > 50 for name in known)
    assert 20 <= sum(types[name] for name in types if name not in known) <= 100


def test_about_three_in_a_hundred_are_posted_again_unchanged_and_after_the_first() -> None:
    first: dict[str, dict[str, Any]] = {}
    resent = 0
    for event in DAY:
        if event.resent:
            resent += 1
            assert event.body == first[event.event_id]
        else:
            assert event.event_id not in first
            first[event.event_id] = event.body
    assert 0.02 < resent / len(DAY) < 0.04


def test_a_stay_opens_before_anything_else_and_nothing_but_late_results_follows_its_end() -> None:
    for events in by_patient(DAY).values():
        types = [event["type"] for event in events]
        assert types[0] == "admission"
        assert types.count("admission") == 1
        if "discharge" in types:
            discharged = types.index("discharge")
            assert {"vital-signs", "transfer", "medication-ordered"}.isdisjoint(types[discharged + 1 :])


def test_a_few_events_come_late() -> None:
    late = 0
    for events in by_patient(DAY).values():
        newest = datetime.min.replace(tzinfo=UTC)
        for event in events:
            ts = datetime.fromisoformat(event["ts"])
            late += ts < newest
            newest = max(newest, ts)
    assert 20 <= late <= 150


def test_some_results_and_measurements_lie_outside_their_range() -> None:
    labs = [event.body["data"] for event in DAY if event.body["type"] == "lab-result"]
    outside = [lab for lab in labs if not lab["referenceRange"]["low"] <= lab["value"] <= lab["referenceRange"]["high"]]
    assert 0.05 < len(outside) / len(labs) < 0.2
    vitals = [event.body["data"] for event in DAY if event.body["type"] == "vital-signs"]
    fast = [vital for vital in vitals if vital["heartRate"] > 110]
    assert 0.05 < len(fast) / len(vitals) < 0.2


def test_every_event_is_one_that_ingest_takes() -> None:
    for event in DAY:
        submitted = SubmittedEvent.model_validate(event.body)
        assert data_errors(submitted.type, submitted.data) == []
