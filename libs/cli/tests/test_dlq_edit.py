"""`carebus dlq edit` and `purge`, against the operations API in memory."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from carebus_cli.main import app

from .stand_in_ops import PATIENT, SECRET, FakeOps


async def carebus(ops: FakeOps, *arguments: str, token: str = "t0ken", **env: str) -> Result:
    runner = CliRunner(env={"CAREBUS_URL": ops.url, "CAREBUS_TOKEN": token, **env})
    return await asyncio.to_thread(lambda: runner.invoke(app, list(arguments)))


# --- edit -----------------------------------------------------------------------------------------------------------


def editor(folder: Path, change: str) -> str:
    """An editor that changes the event `it`, and keeps what it was given in a file."""
    script = folder / "editor.py"
    script.write_text(
        "import json, os, pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1])\n"
        f"seen = pathlib.Path({str(folder / 'seen')!r})\n"
        "seen.write_text(f'{path}\\n{path.stat().st_mode & 0o777:o}\\n')\n"
        "it = json.loads(path.read_text())\n"
        f"{change}\n"
        "path.write_text(json.dumps(it))\n"
    )
    return shlex.join([sys.executable, str(script)])


async def test_an_event_is_edited_by_hand_and_redriven(ops: FakeOps, tmp_path: Path) -> None:
    (letter,) = ops.add(1)
    command = editor(tmp_path, "it['data']['rate'] = 13")
    given = ["dlq", "edit", letter["id"], "--reason", "a typo"]
    result = await carebus(ops, *given, token="phi", EDITOR=command, VISUAL="")
    assert result.exit_code == 0, result.output
    assert letter["edited"]["data"] == {"note": SECRET, "rate": 13}
    assert "processed: 1" in result.stdout
    assert ops.revealed == [(letter["id"], "a typo")]
    path, mode = (tmp_path / "seen").read_text().split()
    assert (Path(path).exists(), mode) == (False, "600")
    assert SECRET not in result.output


async def test_what_was_edited_before_is_edited_further(ops: FakeOps, tmp_path: Path) -> None:
    (letter,) = ops.add(1, edited={"eventId": "e-0", "patientId": PATIENT, "data": {"rate": 1}})
    command = editor(tmp_path, "it['data']['rate'] += 1")
    await carebus(ops, "dlq", "edit", letter["id"], "--reason", "x", token="phi", EDITOR=command, VISUAL="")
    assert letter["edited"]["data"] == {"rate": 2}


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ("pass", 0, "Nothing was changed, so nothing was done."),
        ("sys.exit(3)", 1, "ended with 3: nothing was done"),
        ("it = [1]", 1, "an event is a JSON object"),
        ("it['patientId'] = 'another'", 1, "$.value.patientId: the same as the record's"),
    ],
)
async def test_an_edit_that_is_none_changes_nothing(
    ops: FakeOps, tmp_path: Path, change: str, code: int, told: str
) -> None:
    (letter,) = ops.add(1)
    given = ["dlq", "edit", letter["id"], "--reason", "x"]
    result = await carebus(ops, *given, token="phi", EDITOR=editor(tmp_path, change), VISUAL="")
    assert result.exit_code == code, result.output
    assert told in result.output
    assert (letter["edited"], ops.pending, ops.carried) == (None, [], [])


async def test_an_editor_that_is_not_there_is_told(ops: FakeOps) -> None:
    (letter,) = ops.add(1)
    given = ["dlq", "edit", letter["id"], "--reason", "x"]
    result = await carebus(ops, *given, token="phi", EDITOR="/nowhere/vi", VISUAL="")
    assert result.exit_code == 1
    assert "/nowhere/vi: No such file or directory; set EDITOR, or use --file." in result.stderr


async def test_an_event_from_a_file_is_not_revealed_first(ops: FakeOps, tmp_path: Path) -> None:
    (letter,) = ops.add(1)
    file = tmp_path / "event.json"
    file.write_text(json.dumps({**letter["value"], "data": {}}))
    given = ["dlq", "edit", letter["id"], "--file", str(file), "--reason", "x", "--json"]
    result = await carebus(ops, *given, token="phi")
    assert json.loads(result.stdout)["outcomes"] == {"processed": 1}
    assert (letter["edited"]["data"], ops.revealed) == ({}, [])


@pytest.mark.parametrize("text", ["{", "[]", '{"a": '])
async def test_a_file_that_holds_no_event_is_told_without_its_text(ops: FakeOps, tmp_path: Path, text: str) -> None:
    file = tmp_path / "event.json"
    file.write_text(text)
    result = await carebus(ops, "dlq", "edit", "an-id", "--file", str(file), "--reason", "x", token="phi")
    assert result.exit_code == 2
    assert str(file) in result.stderr
    assert ops.seen == []


async def test_an_edit_takes_a_reason(ops: FakeOps) -> None:
    assert (await carebus(ops, "dlq", "edit", "an-id", token="phi")).exit_code == 2
    assert ops.seen == []


async def test_what_is_no_longer_open_cannot_be_edited(ops: FakeOps, tmp_path: Path) -> None:
    (letter,) = ops.add(1, status="discarded")
    file = tmp_path / "event.json"
    file.write_text(json.dumps(letter["value"]))
    result = await carebus(ops, "dlq", "edit", letter["id"], "--file", str(file), "--reason", "x", token="phi")
    assert result.exit_code == 1
    assert "not-open" in result.stderr
    assert "It was not changed." in result.stderr


# --- purge ----------------------------------------------------------------------------------------------------------


async def test_a_purge_takes_two_operators(ops: FakeOps) -> None:
    asking = await carebus(ops, "dlq", "purge", "--before", "2026-01-01", "--reason", "retention")
    assert asking.exit_code == 0, asking.output
    assert "nothing is deleted yet" in asking.stdout
    (purge,) = ops.purges
    assert (purge["before"], purge["reason"]) == ("2026-01-01T00:00:00.000Z", "retention")
    assert f"carebus dlq purge --approve {purge['id']}" in asking.stdout
    same = await carebus(ops, "dlq", "purge", "--approve", purge["id"])
    assert same.exit_code == 1
    assert "422 not-allowed" in same.stderr
    other = await carebus(ops, "dlq", "purge", "--approve", purge["id"], token="second")
    assert other.exit_code == 0, other.output
    assert "14 dead letters deleted" in other.stdout
    listed = await carebus(ops, "dlq", "purge", "--list")
    assert listed.stdout.splitlines()[1].split()[1:3] == ["done", "2026-01-01T00:00:00Z"]
    assert json.loads((await carebus(ops, "dlq", "purge", "--list", "--json")).stdout)["approvedBy"] == "ops-2"


@pytest.mark.parametrize(
    "arguments",
    [[], ["--before", "2026-01-01"], ["--before", "1d", "--list"], ["--approve", "x", "--list"]],
)
async def test_a_purge_that_is_not_clear_is_refused(ops: FakeOps, arguments: list[str]) -> None:
    assert (await carebus(ops, "dlq", "purge", *arguments)).exit_code == 2
    assert ops.seen == []


async def test_a_purge_that_nobody_asked_for_is_not_there(ops: FakeOps) -> None:
    result = await carebus(ops, "dlq", "purge", "--approve", "00000000-0000-4000-8000-000000000000")
    assert result.exit_code == 1
    assert "404 not-found" in result.stderr
