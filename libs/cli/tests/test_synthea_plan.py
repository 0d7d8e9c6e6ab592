import csv
import gzip
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from carebus_cli.synthea.plan import plan
from carebus_cli.synthea.reader import BadRow, MissingFile
from carebus_common.contracts.event import SubmittedEvent
from carebus_common.contracts.event_types import data_errors

SAMPLE = Path(__file__).parent / "data" / "synthea"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    copy = tmp_path / "csv"
    shutil.copytree(SAMPLE, copy)
    return copy


def rows_of(name: str) -> list[dict[str, str]]:
    with (SAMPLE / f"{name}.csv").open(newline="") as text:
        return list(csv.DictReader(text))


def edit(path: Path, line: int, change: Any) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines))


def test_every_row_makes_its_events_and_the_counts_per_type_are_those_of_the_csv() -> None:
    made = plan(SAMPLE)
    categories = Counter(row["CATEGORY"] for row in rows_of("observations"))
    encounters = len(rows_of("encounters"))
    in_csv = {
        "admission": encounters,
        "discharge": encounters,
        "condition": len(rows_of("conditions")),
        "procedure": len(rows_of("procedures")),
        "immunization": len(rows_of("immunizations")),
        "medication-ordered": len(rows_of("medications")),
        "lab-result": categories["laboratory"],
        "vital-signs": categories["vital-signs"],
        "observation": categories.total() - categories["laboratory"] - categories["vital-signs"],
    }
    assert min(in_csv.values()) > 0
    assert made.expected == in_csv
    assert Counter(event.type for event in made.events) == in_csv
    assert len({event.event_id for event in made.events}) == sum(in_csv.values())
    assert made.bad == []


def test_all_events_of_the_sample_are_valid_submissions() -> None:
    for event in plan(SAMPLE).events:
        submitted = SubmittedEvent.model_validate_json(event.body)
        assert data_errors(submitted.type, submitted.data) == []


def test_events_come_in_time_order() -> None:
    times = [msgspec.json.decode(event.body)["ts"] for event in plan(SAMPLE).events]
    assert times == sorted(times)


def test_an_encounter_is_admitted_before_all_that_happened_in_it_and_discharged_after() -> None:
    """What Synthea dates after the encounter's end (a lab's result, say) comes after the discharge, as it happened."""
    by_encounter: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in plan(SAMPLE).events:
        body = msgspec.json.decode(event.body)
        by_encounter[body["data"].get("encounterId", "")].append(body)
    by_encounter.pop("")
    for events in by_encounter.values():
        types = [event["type"] for event in events]
        admitted, discharged = types.index("admission"), types.index("discharge")
        assert all(event["ts"] < events[admitted]["ts"] for event in events[:admitted])
        assert all(event["ts"] > events[discharged]["ts"] for event in events[discharged + 1 :])


def test_an_encounter_that_ends_as_the_next_begins_is_discharged_before_the_next_is_admitted(export: Path) -> None:
    header, *_ = (export / "encounters.csv").read_text().splitlines()
    columns = header.split(",")

    def line(**values: str) -> str:
        return ",".join(values.get(column, "") for column in columns)

    both = [
        line(Id="b", START="2024-01-01T10:00:00Z", STOP="2024-01-01T11:00:00Z", PATIENT="p", CODE="1"),
        line(Id="a", START="2024-01-01T09:00:00Z", STOP="2024-01-01T10:00:00Z", PATIENT="p", CODE="1"),
    ]
    (export / "encounters.csv").write_text("\n".join([header, *both]) + "\n")
    bodies = [msgspec.json.decode(event.body) for event in plan(export).events if event.patient_id == "p"]
    assert [(body["data"]["encounterId"], body["type"]) for body in bodies] == [
        ("a", "admission"),
        ("a", "discharge"),
        ("b", "admission"),
        ("b", "discharge"),
    ]


def test_a_gzipped_export_makes_the_same_events(export: Path) -> None:
    for path in list(export.glob("*.csv")):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert [event.body for event in plan(export).events] == [event.body for event in plan(SAMPLE).events]


def test_a_second_reading_makes_the_same_events_whatever_the_order_of_the_rows(export: Path) -> None:
    path = export / "observations.csv"
    header, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, *reversed(lines)]))
    ids = sorted(event.event_id for event in plan(SAMPLE).events)
    assert sorted(event.event_id for event in plan(export).events) == ids


def test_a_missing_file_is_named(export: Path) -> None:
    (export / "procedures.csv").unlink()
    with pytest.raises(MissingFile, match=r"lacks procedures\.csv"):
        plan(export)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="is not a directory"):
        plan(tmp_path / "nowhere")


def test_a_missing_column_is_named(export: Path) -> None:
    edit(export / "medications.csv", 1, lambda header: header.replace("ENCOUNTER", "VISIT"))
    with pytest.raises(MissingFile, match=r"medications\.csv lacks the column ENCOUNTER"):
        plan(export)


def test_a_broken_gzip_file_is_told_by_its_name(export: Path) -> None:
    whole = gzip.compress((export / "conditions.csv").read_bytes())
    (export / "conditions.csv").unlink()
    (export / "conditions.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MissingFile, match=r"conditions\.csv\.gz cannot be read"):
        plan(export)


def test_bad_rows_are_listed_with_their_place_and_the_others_go_on(export: Path) -> None:
    edit(export / "procedures.csv", 3, lambda line: line.split(",", 1)[1])
    edit(export / "medications.csv", 2, lambda line: "soon" + line[20:])
    made = plan(export)
    assert [str(bad).split(": ")[0] for bad in made.bad] == ["procedures.csv:3", "medications.csv:2"]
    # A row of the wrong shape has no type to expect; one with a bad value is expected and shows as missing.
    planned = Counter(event.type for event in made.events)
    assert made.expected["medication-ordered"] == planned["medication-ordered"] + 1
    assert made.expected["procedure"] == planned["procedure"] == len(rows_of("procedures")) - 1


def test_strict_stops_at_the_first_bad_row(export: Path) -> None:
    edit(export / "medications.csv", 2, lambda line: "soon" + line[20:])
    with pytest.raises(BadRow, match=r"medications\.csv:2: START must be a UTC time"):
        plan(export, strict=True)


def test_a_bad_encounter_does_not_lend_its_start_to_others(export: Path) -> None:
    first = rows_of("encounters")[0]
    edit(export / "encounters.csv", 2, lambda line: line.replace(first["START"], first["START"][:10] + " noon"))
    made = plan(export)
    assert len(made.bad) == 1
    for event in made.events:
        SubmittedEvent.model_validate_json(event.body)
