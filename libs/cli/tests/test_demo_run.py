"""The demo and the other commands on the whole of Carebus: real Kafka, store and Valkey, and the four services."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

SAMPLE = Path(__file__).parent / "data" / "synthea"
CAREBUS = (sys.executable, "-m", "carebus_cli.main")


def environment(state_dir: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CAREBUS_")}
    return {**kept, "CAREBUS_STATE_DIR": str(state_dir)}


async def carebus(state_dir: Path, *arguments: str, given: bytes = b"") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *CAREBUS,
        *arguments,
        env=environment(state_dir),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, told = await process.communicate(given)
    return process.returncode or 0, out.decode(), told.decode()


@asynccontextmanager
async def demo(state_dir: Path, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The demo, once it has shown its summary and stays up; ended with Ctrl-C."""
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(*CAREBUS, "demo", "--patients", "6", "--rate", "1000"),
            env=environment(state_dir),
            stdout=out,
            stderr=out,
        )
    try:
        while b"stays up" not in log.read_bytes():
            assert process.returncode is None, log.read_text()
            await asyncio.sleep(0.1)
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            await process.wait()


@pytest.mark.timeout(600)
async def test_the_demo_shows_a_day_stays_up_for_other_commands_and_runs_again(tmp_path: Path) -> None:
    state_dir, log = tmp_path / "state", tmp_path / "log"
    async with asyncio.timeout(580):
        async with demo(state_dir, log) as process:
            shown = log.read_text()
            assert "Every accepted event was processed exactly once, in its patient's order." in shown
            assert re.search(r"start to first processed event +│ +\d+\.\d s", shown)
            await the_printed_curl_works(shown)
            await an_event_can_be_sent_and_followed(state_dir)
            await an_export_can_be_imported_twice(state_dir)
        assert process.returncode == 0, log.read_text()

        code, out, told = await carebus(state_dir, "demo", "--once", "--json", "--patients", "6", "--rate", "1000")
        assert code == 0, out + told
        summary = json.loads(out)
        assert summary["complete"] is True
        assert summary["accepted"] == summary["processedOnce"] == summary["posts"] - summary["duplicates"] > 100
        assert summary["duplicates"] > 0
        assert 0 < summary["secondsToFirstProcessed"] < 120
        assert set(summary["latencySeconds"]) == {"postToAcknowledged", "postToHandled", "postToServed"}


async def the_printed_curl_works(shown: str) -> None:
    found = re.search(r"^curl -H '(Authorization: Bearer \S+)' '(http://\S+)'$", shown, re.MULTILINE)
    assert found is not None, shown
    name, _, value = found[1].partition(": ")
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(found[2], headers={name: value})
    assert len(answer.json()["data"]) == 5


async def an_event_can_be_sent_and_followed(state_dir: Path) -> None:
    event = {"patientId": "visitor-1", "type": "admission", "ts": "2026-01-31T08:15:00-05:00", "data": {"ward": "A"}}
    code, out, told = await carebus(state_dir, "send", "-", "--json", given=json.dumps(event).encode())
    assert code == 0, told
    receipt: dict[str, Any] = json.loads(out)["results"][0]
    place = ("--partition", str(receipt["partition"]), "--offset", str(receipt["offset"]))
    while True:
        code, out, told = await carebus(state_dir, "events", "get", receipt["eventId"], *place, "--json")
        assert code == 0, told
        if json.loads(out)["status"] == "processed":
            break
    # Processed by the processor; the history follows.
    while (await carebus(state_dir, "patients", "get", "visitor-1"))[0] != 0:
        pass
    _, out, _ = await carebus(state_dir, "patients", "history", "visitor-1", "--json")
    assert [json.loads(line)["message"] for line in out.splitlines()] == ["stay opened"]


async def an_export_can_be_imported_twice(state_dir: Path) -> None:
    for _ in range(2):
        code, out, told = await carebus(state_dir, "import", "synthea", str(SAMPLE), "--json")
        assert code == 0, out + told
        report = json.loads(out)
        assert report["complete"] is True
        assert all(count["processed"] == count["expected"] > 0 for count in report["types"].values())
    assert report["eventsPerSecond"] is None
