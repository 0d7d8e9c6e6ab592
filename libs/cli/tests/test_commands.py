"""The commands as a user calls them, against a gateway in memory on a real socket."""

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from carebus_cli.main import app

from .conftest import FakeGateway, refuse

SAMPLE = Path(__file__).parent / "data" / "synthea"


def event(number: int, patient: str = "p1") -> dict[str, Any]:
    return {
        "eventId": f"00000000-0000-4000-8000-{number:012d}",
        "patientId": patient,
        "type": "observation",
        "ts": "2026-01-31T08:15:00Z",
        "data": {},
    }


async def carebus(gateway: FakeGateway, *arguments: str, given: bytes | None = None) -> Result:
    runner = CliRunner(env={"CAREBUS_URL": gateway.url, "CAREBUS_TOKEN": "t0ken"})
    return await asyncio.to_thread(lambda: runner.invoke(app, list(arguments), input=given))


@pytest.fixture
def no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAREBUS_STATE_DIR", str(tmp_path / "state"))
    for name in ("CAREBUS_URL", "CAREBUS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "state"


async def test_one_event_is_sent_and_its_receipt_shown(gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "event.json"
    file.write_bytes(msgspec.json.encode(event(1)))
    result = await carebus(gateway, "send", str(file))
    assert result.exit_code == 0, result.output
    assert "accepted 00000000-0000-4000-8000-000000000001" in result.stdout
    assert f"{gateway.url}/events/00000000-0000-4000-8000-000000000001" in result.stdout
    assert gateway.log == [event(1)]
    assert gateway.tokens == {"Bearer t0ken"}


async def test_ndjson_from_standard_input_is_sent_as_a_batch(gateway: FakeGateway) -> None:
    lines = b"\n".join(msgspec.json.encode(event(number)) for number in range(30))
    result = await carebus(gateway, "send", "-", given=lines)
    assert result.exit_code == 0, result.output
    assert "30 accepted, 0 rejected" in result.stdout
    assert gateway.log == [event(number) for number in range(30)]


async def test_a_rejected_event_is_told_with_its_number_and_field_and_ends_with_1(gateway: FakeGateway) -> None:
    gateway.refuse_item = lambda item: "invalid-request" if item == event(2) else None
    result = await carebus(gateway, "send", "-", given=msgspec.json.encode([event(1), event(2), event(3)]))
    assert result.exit_code == 1
    assert "2 accepted, 1 rejected" in result.stdout
    assert "data: is good" in result.stderr
    assert gateway.log == [event(1), event(3)]


async def test_a_single_rejected_event_ends_with_1(gateway: FakeGateway) -> None:
    gateway.refuse_item = lambda _: "invalid-request"
    result = await carebus(gateway, "send", "-", given=msgspec.json.encode(event(1)))
    assert result.exit_code == 1
    assert "invalid-request" in result.stderr


async def test_results_per_item_are_printed_as_json(gateway: FakeGateway) -> None:
    gateway.refuse_item = lambda item: "invalid-request" if item == event(2) else None
    result = await carebus(gateway, "send", "-", "--json", given=msgspec.json.encode([event(1), event(2)]))
    answer = json.loads(result.stdout)
    assert (answer["accepted"], answer["rejected"]) == (1, 1)
    assert [(item["index"], item["status"]) for item in answer["results"]] == [(0, "accepted"), (1, "rejected")]
    assert answer["results"][1]["error"]["details"] == [{"path": "data", "rule": "is good"}]


async def test_a_refused_token_is_told_with_the_request_id(gateway: FakeGateway) -> None:
    gateway.answer_with(refuse(401, "unauthenticated"))
    result = await carebus(gateway, "send", "-", given=msgspec.json.encode([event(1), event(2)]))
    assert result.exit_code == 1
    assert "401 unauthenticated" in result.stderr
    assert "request r-1" in result.stderr
    assert "2 of 2 events got no answer" in result.stderr


async def test_a_file_that_is_not_there_is_told(gateway: FakeGateway) -> None:
    result = await carebus(gateway, "send", "nowhere.json")
    assert result.exit_code == 2
    assert "nowhere.json: No such file or directory" in result.stderr


async def test_a_file_without_events_is_told(gateway: FakeGateway) -> None:
    result = await carebus(gateway, "send", "-", given=b"hello")
    assert result.exit_code == 2
    assert "neither as a JSON object nor as an array" in result.stderr


async def test_without_a_running_system_it_is_told_what_to_do(no_state: Path) -> None:
    result = await asyncio.to_thread(lambda: CliRunner().invoke(app, ["events", "get", "e"]))
    assert result.exit_code == 2
    assert f"Nothing runs on {no_state}: start it with `carebus up`, or give --url and --token." in result.stderr


async def test_an_event_is_shown(gateway: FakeGateway) -> None:
    gateway.log = [event(1)]
    found = await carebus(gateway, "events", "get", event(1)["eventId"], "--json")
    assert json.loads(found.stdout)["status"] == "processed"
    missing = await carebus(gateway, "events", "get", event(2)["eventId"])
    assert missing.exit_code == 1
    assert "404 not-found" in missing.stderr


async def test_the_place_of_a_receipt_is_passed_on(gateway: FakeGateway) -> None:
    await carebus(gateway, "events", "get", "e-1", "--partition", "3", "--offset", "17")
    assert gateway.seen == [("GET", "/events/e-1?partition=3&offset=17")]


async def test_a_patient_is_shown(gateway: FakeGateway) -> None:
    gateway.log = [event(1), event(2)]
    result = await carebus(gateway, "patients", "get", "p1")
    assert result.exit_code == 0, result.output
    assert '"observation": 2' in result.stdout


async def test_one_page_of_a_history_says_that_there_is_more(gateway: FakeGateway) -> None:
    gateway.log = [event(number) for number in range(5)]
    result = await carebus(gateway, "patients", "history", "p1", "--limit", "3", "--json", "--type", "observation")
    assert [json.loads(line)["eventId"] for line in result.stdout.splitlines()] == [
        event(number)["eventId"] for number in range(3)
    ]
    assert "--all shows them" in result.stderr
    assert gateway.seen == [("GET", "/patients/p1/history?type=observation&limit=3")]


async def test_a_whole_history_is_shown(gateway: FakeGateway) -> None:
    gateway.log = [event(number) for number in range(450)]
    result = await carebus(gateway, "patients", "history", "p1", "--all", "--oldest-first")
    assert result.stdout.count("observation") == 450
    assert gateway.seen[0] == ("GET", "/patients/p1/history?order=asc&limit=200")
    assert len(gateway.seen) == 3


async def test_text_of_others_cannot_steer_the_terminal(gateway: FakeGateway) -> None:
    gateway.log = [{**event(1), "type": "\x1b[31m[bold]red"}]
    result = await carebus(gateway, "patients", "history", "p1")
    assert "\x1b" not in result.stdout
    assert "\\x1b[31m[bold]red" in result.stdout


async def test_an_export_is_imported_and_compared_with_the_csv(gateway: FakeGateway) -> None:
    result = await carebus(gateway, "import", "synthea", str(SAMPLE))
    assert result.exit_code == 0, result.output
    assert "complete: every row accepted and processed exactly once" in result.stdout
    rows = sum(
        len((SAMPLE / f"{name}.csv").read_text().splitlines()) - 1
        for name in (
            "encounters",
            "encounters",
            "conditions",
            "observations",
            "procedures",
            "immunizations",
            "medications",
        )
    )
    assert len(gateway.log) == rows
    times: dict[str, list[str]] = {}
    for sent in gateway.log:
        times.setdefault(sent["patientId"], []).append(sent["ts"])
    assert len(times) == 4
    assert all(of_patient == sorted(of_patient) for of_patient in times.values())


async def test_importing_again_makes_duplicates_only(gateway: FakeGateway) -> None:
    first = await carebus(gateway, "import", "synthea", str(SAMPLE), "--json")
    again = await carebus(gateway, "import", "synthea", str(SAMPLE), "--json")
    assert (first.exit_code, again.exit_code) == (0, 0)
    report = json.loads(again.stdout)
    assert report["complete"] is True
    for counts in report["types"].values():
        assert counts["before"] == counts["expected"] == counts["accepted"] == counts["processed"] > 0
    assert report["eventsPerSecond"] is None
    assert json.loads(first.stdout)["eventsPerSecond"] > 0


async def test_an_event_that_is_processed_twice_makes_the_import_incomplete(gateway: FakeGateway) -> None:
    await carebus(gateway, "import", "synthea", str(SAMPLE))
    gateway.apply_twice = {next(sent["eventId"] for sent in gateway.log if sent["type"] == "immunization")}
    result = await carebus(gateway, "import", "synthea", str(SAMPLE))
    assert result.exit_code == 1
    assert "too many" in result.stdout
    assert "1 patients have another number of events than the CSV" in result.stderr
    assert "NOT complete" in result.stdout


async def test_a_row_that_is_rejected_is_told_by_file_and_line(gateway: FakeGateway) -> None:
    gateway.refuse_item = lambda item: "invalid-request" if item["type"] == "medication-ordered" else None
    result = await carebus(gateway, "import", "synthea", str(SAMPLE), "--stall", "1")
    assert result.exit_code == 1
    assert "medications.csv:2: invalid-request: No." in result.stderr
    assert "NOT complete" in result.stdout


async def test_a_bad_row_is_told_and_left_out_or_stops_a_strict_import(gateway: FakeGateway, tmp_path: Path) -> None:
    export = tmp_path / "csv"
    shutil.copytree(SAMPLE, export)
    medications = (export / "medications.csv").read_text().splitlines()
    medications[1] = "soon" + medications[1][20:]
    (export / "medications.csv").write_text("\n".join(medications) + "\n")
    strict = await carebus(gateway, "import", "synthea", str(export), "--strict")
    assert strict.exit_code == 1
    assert "medications.csv:2: START must be a UTC time" in strict.stderr
    assert gateway.log == []
    result = await carebus(gateway, "import", "synthea", str(export), "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["badRows"] == ["medications.csv:2: START must be a UTC time such as 2026-01-31T08:15:00Z"]
    assert report["types"]["medication-ordered"]["processed"] == report["types"]["medication-ordered"]["expected"] - 1


async def test_a_directory_without_an_export_is_told(gateway: FakeGateway, tmp_path: Path) -> None:
    result = await carebus(gateway, "import", "synthea", str(tmp_path))
    assert result.exit_code == 2
    assert "lacks encounters.csv[.gz]" in result.stderr


async def test_an_interrupted_import_says_how_far_it_got_and_goes_on_when_run_again(gateway: FakeGateway) -> None:
    waiting = asyncio.Event()

    def first_half(item: dict[str, Any]) -> str | None:
        if len(gateway.log) < 100:
            return None
        waiting.set()
        return "unavailable"

    gateway.refuse_item = first_half
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "carebus_cli.main", "import", "synthea", str(SAMPLE)),
        env={**os.environ, "CAREBUS_URL": gateway.url, "CAREBUS_TOKEN": "t0ken"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        await waiting.wait()
        await asyncio.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, told = await process.communicate()
    assert process.returncode == 130
    assert "Interrupted. 100 of 369 events were accepted. Running it again is safe" in told.decode()
    assert "Traceback" not in told.decode()
    gateway.refuse_item = lambda _: None
    result = await carebus(gateway, "import", "synthea", str(SAMPLE))
    assert result.exit_code == 0, result.output
