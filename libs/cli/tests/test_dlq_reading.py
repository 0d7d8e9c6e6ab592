"""`carebus dlq summary`, `list`, `show`, `watch` and `export`, against the operations API in memory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from typer.testing import CliRunner, Result

from carebus_cli.client import GatewayClient
from carebus_cli.dlq.times import parse_time, rfc3339
from carebus_cli.dlq.watch import new_letters
from carebus_cli.main import app
from carebus_cli.ops import connect_operator
from carebus_local.keys import ensure_key

from .stand_in_ops import HASH, PATIENT, SECRET, FakeOps, refusal


async def carebus(ops: FakeOps, *arguments: str, token: str = "t0ken") -> Result:
    runner = CliRunner(env={"CAREBUS_URL": ops.url, "CAREBUS_TOKEN": token})
    return await asyncio.to_thread(lambda: runner.invoke(app, list(arguments)))


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- summary and list -----------------------------------------------------------------------------------------------


async def test_a_summary_has_a_line_per_cause(ops: FakeOps) -> None:
    ops.add(12)
    ops.add(1, status="discarded")
    result = await carebus(ops, "dlq", "summary", "--since", "1h")
    assert result.exit_code == 0, result.output
    heading, line = result.stdout.splitlines()
    assert heading.split()[:3] == ["FINGERPRINT", "OPEN", "PATIENTS"]
    assert line.split()[:5] == ["f-1", "12", "1", "0", "1"]
    assert "a field is missing" in line
    (group,) = lines(await carebus(ops, "dlq", "summary", "--json"))
    assert (group["fingerprint"], group["open"], group["discarded"]) == ("f-1", 12, 1)


async def test_no_dead_letters_are_told_as_such(ops: FakeOps) -> None:
    assert "processor has no dead letters." in (await carebus(ops, "dlq", "summary")).stdout
    assert "claims has none that match." in (await carebus(ops, "dlq", "list", "--service", "claims")).stdout
    assert (await carebus(ops, "dlq", "list", "--json")).stdout == ""


async def test_a_list_is_masked_and_says_that_there_is_more(ops: FakeOps) -> None:
    ops.add(60)
    result = await carebus(ops, "dlq", "list")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 51
    assert result.stdout.splitlines()[1].split()[0] == "medical.events.v1-3-59"
    assert "--all shows them" in result.stderr
    assert SECRET not in result.output
    assert PATIENT not in result.output


async def test_all_pages_are_listed_one_json_a_line(ops: FakeOps) -> None:
    ops.add(450)
    found = lines(await carebus(ops, "dlq", "list", "--all", "--json"))
    assert [letter["id"] for letter in found] == [f"medical.events.v1-3-{number}" for number in range(450)][::-1]
    assert len(ops.seen) == 3


async def test_every_filter_is_passed_on(ops: FakeOps) -> None:
    ops.add(1)
    given = ["--fingerprint", "f-1", "--type", "observation", "--org-filter", "north-hospital", "--patient", HASH]
    given += ["--since", "2026-01-01T00:00:00+01:00", "--until", "2099-01-01", "--status", "all", "--json"]
    assert len(lines(await carebus(ops, "dlq", "list", *given))) == 1
    (_, asked) = ops.seen[-1]
    assert asked == (
        f"/ops/processor/dead-letters?fingerprint=f-1&type=observation&organizationId=north-hospital&patient={HASH}"
        "&since=2025-12-31T23%3A00%3A00.000Z&until=2099-01-01T00%3A00%3A00.000Z&status=all&limit=50"
    )


async def test_a_patients_id_takes_the_organization_too(ops: FakeOps) -> None:
    ops.add(2)
    alone = await carebus(ops, "dlq", "list", "--patient", PATIENT, token="phi")
    assert alone.exit_code == 2
    assert ops.seen == []
    both = ["dlq", "list", "--patient", PATIENT, "--organization", "north-hospital", "--json"]
    assert len(lines(await carebus(ops, *both, token="phi"))) == 2
    masked = await carebus(ops, *both)
    assert masked.exit_code == 1
    assert "operator-phi to reveal, to edit or to search by patient id" in masked.stderr


async def test_the_service_is_chosen(ops: FakeOps) -> None:
    await carebus(ops, "dlq", "list", "--service", "claims")
    assert ops.seen[0][1].startswith("/ops/claims/dead-letters?")
    assert (await carebus(ops, "dlq", "list", "--service", "billing")).exit_code == 2


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("stale", "The token is not accepted"),
        ("nobody", "takes a token with the role operator"),
    ],
)
async def test_a_refusal_says_what_to_do(ops: FakeOps, token: str, told: str) -> None:
    result = await carebus(ops, "dlq", "list", token=token)
    assert result.exit_code == 1
    assert told in result.stderr
    assert "request r-1" in result.stderr


async def test_a_service_that_is_away_is_told_soon(ops: FakeOps) -> None:
    ops.answers.extend([lambda _: refusal(503, "unavailable", **{"Retry-After": "60"})])
    result = await carebus(ops, "dlq", "list", "--service", "claims")
    assert result.exit_code == 1
    assert "503 unavailable" in result.stderr
    assert "claims or its store is away" in result.stderr


async def test_no_gateway_ends_with_2(ops: FakeOps) -> None:
    result = await carebus(ops, "dlq", "list", "--url", "http://127.0.0.1:1")
    assert result.exit_code == 2
    assert "no answer from http://127.0.0.1:1" in result.stderr
    assert "Is the gateway up?" in result.stderr


# --- show -----------------------------------------------------------------------------------------------------------


async def test_a_dead_letter_is_shown_masked(ops: FakeOps) -> None:
    (letter,) = ops.add(1, edits=[{"by": "ops-2", "at": "2026-01-31T08:15:00Z", "reason": "typo", "diff": []}])
    result = await carebus(ops, "dlq", "show", letter["id"])
    assert result.exit_code == 0, result.output
    for told in ("its patient waits behind it", "LookupError at carebus_processor.stays:12", "x-theirs", "•••", "typo"):
        assert told in result.stdout
    assert SECRET not in result.output
    assert PATIENT not in result.output
    assert ops.revealed == []


async def test_a_payload_is_revealed_with_a_reason_only(ops: FakeOps) -> None:
    (letter,) = ops.add(1)
    without = await carebus(ops, "dlq", "show", letter["id"], "--reveal", token="phi")
    assert without.exit_code == 2
    assert ops.seen == []
    result = await carebus(ops, "dlq", "show", letter["id"], "--reveal", "--reason", "ticket 7", token="phi")
    assert SECRET in result.stdout
    assert PATIENT in result.stdout
    assert ops.revealed == [(letter["id"], "ticket 7")]
    as_json = json.loads(
        (await carebus(ops, "dlq", "show", letter["id"], "--reveal", "--reason", "x", "--json", token="phi")).stdout
    )
    assert (as_json["payload"], as_json["patientId"]) == (letter["value"], PATIENT)
    assert as_json["status"] == "open"


async def test_what_may_not_be_revealed_is_not_shown_at_all(ops: FakeOps) -> None:
    (letter,) = ops.add(1)
    result = await carebus(ops, "dlq", "show", letter["id"], "--reveal", "--reason", "x")
    assert result.exit_code == 1
    assert result.stdout == ""


async def test_another_organizations_dead_letter_is_not_there(ops: FakeOps) -> None:
    (letter,) = ops.add(1, organizationId="south-hospital")
    result = await carebus(ops, "dlq", "show", letter["id"], token="hospital")
    assert result.exit_code == 1
    assert "404 not-found" in result.stderr
    assert "processor has nothing by that name that this token may see" in result.stderr


async def test_text_of_others_cannot_steer_the_terminal(ops: FakeOps) -> None:
    (letter,) = ops.add(1, type="\x1b[31m[bold]red")
    for command in (("list",), ("show", letter["id"]), ("summary",)):
        result = await carebus(ops, "dlq", *command)
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.stdout


# --- watch ----------------------------------------------------------------------------------------------------------


async def test_new_dead_letters_are_seen_once_each_and_in_order(ops: FakeOps) -> None:
    ops.add(3)
    asleep = 0

    async def sleep(_: float) -> None:
        nonlocal asleep
        asleep += 1
        if asleep == 1:
            ops.put(datetime.now(UTC))
            ops.put(datetime.now(UTC) + timedelta(milliseconds=2))
        elif asleep == 2:
            # Its owner's transaction ended later than that of the next one.
            ops.put(datetime.now(UTC) - timedelta(seconds=5))

    seen = []
    async with GatewayClient(ops.url, "t0ken") as client, asyncio.timeout(20):
        async for letter in new_letters(client, "processor", {}, sleep=sleep):
            seen.append(letter["id"])
            if len(seen) == 3:
                break
    assert seen == [f"medical.events.v1-3-{number}" for number in (3, 4, 5)]


async def test_a_watch_outlives_an_outage(ops: FakeOps, capsys: pytest.CaptureFixture[str]) -> None:
    ops.add(1)
    outage = [lambda _: refusal(503, "unavailable", **{"Retry-After": "600"})] * 2
    rounds = iter([outage, []])

    async def sleep(_: float) -> None:
        ops.answers.extend(next(rounds, []))
        if len(ops.letters) == 1:
            ops.put(datetime.now(UTC))

    async with GatewayClient(ops.url, "t0ken") as client, asyncio.timeout(20):
        async for letter in new_letters(client, "processor", {}, sleep=sleep):
            assert letter["id"] == "medical.events.v1-3-1"
            break
    assert capsys.readouterr().err.count("still watching") == 1


async def test_watching_begins_with_those_since_a_time_and_ends_with_ctrl_c(ops: FakeOps) -> None:
    ops.add(2)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "carebus_cli.main", "dlq", "watch", "--since", "1h", "--json"),
        env={**os.environ, "CAREBUS_URL": ops.url, "CAREBUS_TOKEN": "t0ken"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        first = [json.loads(await process.stdout.readline())["id"] for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, told = await process.communicate()
    assert first == ["medical.events.v1-3-0", "medical.events.v1-3-1"]
    assert process.returncode == 130
    assert told == b""


# --- export ---------------------------------------------------------------------------------------------------------


async def test_an_export_holds_every_one_in_whatever_state_masked(ops: FakeOps) -> None:
    ops.add(250)
    ops.add(250, status="redriven")
    result = await carebus(ops, "dlq", "export")
    assert len({letter["id"] for letter in lines(result)}) == 500
    assert SECRET not in result.output


async def test_an_export_to_a_file_is_its_owners_only(ops: FakeOps, tmp_path: Path) -> None:
    ops.add(3)
    out = tmp_path / "letters.ndjson"
    given = ["dlq", "export", "--out", str(out), "--reveal", "--reason", "ticket 7"]
    result = await carebus(ops, *given, token="phi")
    assert result.exit_code == 0, result.output
    assert f"3 dead letters in {out}" in result.stdout
    assert [json.loads(line)["payload"]["data"]["note"] for line in out.read_text().splitlines()] == [SECRET] * 3
    assert out.stat().st_mode & 0o077 == 0
    assert len(ops.revealed) == 3


async def test_an_export_that_fails_leaves_no_half_of_a_file(ops: FakeOps, tmp_path: Path) -> None:
    ops.add(250)
    page = '{"data": [], "page": {"next": "made-up"}}'
    from starlette.responses import PlainTextResponse

    ops.answers.append(lambda _: PlainTextResponse(page))
    ops.answers.append(lambda _: refusal(403, "forbidden"))
    result = await carebus(ops, "dlq", "export", "--out", str(tmp_path / "letters.ndjson"))
    assert result.exit_code == 1
    assert "was not written" in result.stderr
    assert list(tmp_path.iterdir()) == []


# --- times and tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("15m", "2026-01-31T08:00:00.000Z"),
        ("2h", "2026-01-31T06:15:00.000Z"),
        ("3d", "2026-01-28T08:15:00.000Z"),
        ("2026-01-30", "2026-01-30T00:00:00.000Z"),
        ("2026-01-30T08:15:00-05:00", "2026-01-30T13:15:00.000Z"),
    ],
)
def test_a_time_is_so_long_ago_or_a_point_in_time(text: str, meant: str) -> None:
    assert rfc3339(parse_time(text, datetime(2026, 1, 31, 8, 15, tzinfo=UTC))) == meant


@pytest.mark.parametrize("text", ["soon", "15", "-3d", "2026-01-30T08:15:00", "1w", "999999d", ""])
async def test_a_time_that_is_none_is_refused(ops: FakeOps, text: str) -> None:
    result = await carebus(ops, "dlq", "list", "--since", text)
    assert result.exit_code == 2
    assert "--since" in result.stderr
    assert ops.seen == []


@pytest.mark.parametrize(("phi", "roles"), [(False, ["operator"]), (True, ["operator", "operator-phi"])])
def test_a_development_token_has_no_more_roles_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phi: bool, roles: list[str]
) -> None:
    ensure_key(tmp_path)
    monkeypatch.setenv("CAREBUS_OPERATIONS_ORGANIZATION", "our-ops")
    made = connect_operator("http://127.0.0.1:1", None, tmp_path, phi=phi)
    claims = jwt.decode(made.token, options={"verify_signature": False})
    assert (claims["organizationId"], claims["roles"]) == ("our-ops", roles)
