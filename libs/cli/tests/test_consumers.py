"""`carebus consumers` and `carebus topics tail`, against the operations API in memory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from carebus_cli.client import GatewayClient
from carebus_cli.main import app
from carebus_cli.tail import records

from .stand_in_ops import HASH, FakeOps, refusal


async def carebus(ops: FakeOps, *arguments: str, token: str = "t0ken") -> Result:
    runner = CliRunner(env={"CAREBUS_URL": ops.url, "CAREBUS_TOKEN": token})
    return await asyncio.to_thread(lambda: runner.invoke(app, list(arguments)))


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


async def test_each_service_has_a_line_with_what_waits(ops: FakeOps) -> None:
    ops.add(4)
    result = await carebus(ops, "consumers")
    assert result.exit_code == 0, result.output
    _, processor, claims = result.stdout.splitlines()
    assert processor.split()[:9] == ["processor", "carebus-processor", "3", "3", "2", "17", "4", "0", "running"]
    assert "2026-01-31T08:15:00Z (" in processor
    assert claims.split()[0] == "claims"
    assert [one["service"] for one in lines(await carebus(ops, "consumers", "--json"))] == ["processor", "claims"]


async def test_the_lag_of_each_partition_is_shown_when_asked_for(ops: FakeOps) -> None:
    result = await carebus(ops, "consumers", "--partitions")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["processor", "medical.events.v1", "2", "10", "12", "2"] in rows
    assert ["claims", "medical.events.v1", "0", "10", "10", "0"] in rows


async def test_a_pause_is_told_and_ended(ops: FakeOps) -> None:
    ops.paused = {"reason": "failures", "detail": "100 in a row", "at": "2026-01-31T08:15:00Z"}
    told = "paused (failures: 100 in a row) since 2026-01-31T08:15:00Z"
    assert told in (await carebus(ops, "consumers")).stdout
    without = await carebus(ops, "consumers", "resume", "processor")
    assert (without.exit_code, ops.bodies) == (2, [])
    result = await carebus(ops, "consumers", "resume", "processor", "--reason", "rolled back")
    assert result.exit_code == 0, result.output
    assert "running" in result.stdout
    assert ops.bodies == [("consumer/resume", {"reason": "rolled back"})]


async def test_a_service_that_is_away_hides_no_other(ops: FakeOps) -> None:
    ops.away = {"claims"}
    result = await carebus(ops, "consumers")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1].split()[0] == "processor"
    assert "503 unavailable" in result.stderr
    assert "claims or its store is away" in result.stderr


async def test_consumers_are_for_the_operations_organization(ops: FakeOps) -> None:
    result = await carebus(ops, "consumers", token="hospital")
    assert result.exit_code == 1
    assert "403 forbidden" in result.stderr
    assert "the operations organization" in result.stderr


async def test_no_gateway_ends_with_2(ops: FakeOps) -> None:
    assert (await carebus(ops, "consumers", "--url", "http://127.0.0.1:1")).exit_code == 2


# --- topics tail ----------------------------------------------------------------------------------------------------


async def test_the_newest_records_are_shown_masked_the_newest_last(ops: FakeOps) -> None:
    for _ in range(5):
        ops.record()
    ops.record(dlq={"id": "a-0-7", "reason": "permanent", "error-class": "lib.Bad"})
    result = await carebus(ops, "topics", "tail", "medical.events.v1", "--lines", "3")
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["3/3", "3/4", "3/5"]
    assert '{"data":{"note":"•••"}}' in result.stdout
    assert "a-0-7 permanent Bad" in result.stdout
    as_json = lines(await carebus(ops, "topics", "tail", "medical.events.v1", "-n", "1", "--json"))
    assert [(one["offset"], one["patient"]) for one in as_json] == [(5, HASH)]


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["medical.events.v1"], "/ops/processor/topics/medical.events.v1/tail?limit=20"),
        (["claims.dlq.v1"], "/ops/claims/topics/claims.dlq.v1/tail?limit=20"),
        (["medical.events.v1", "--service", "claims"], "/ops/claims/topics/medical.events.v1/tail?limit=20"),
    ],
)
async def test_the_service_that_has_the_topic_is_asked(ops: FakeOps, arguments: list[str], path: str) -> None:
    await carebus(ops, "topics", "tail", *arguments)
    assert ops.seen == [("GET", path)]


async def test_an_unknown_topic_is_told(ops: FakeOps) -> None:
    result = await carebus(ops, "topics", "tail", "nonsense")
    assert result.exit_code == 1
    assert "404 not-found" in result.stderr
    assert "--service says which service is asked" in result.stderr


async def test_following_shows_each_record_once_and_outlives_an_outage(
    ops: FakeOps, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        ops.record()
    rounds = 0

    async def sleep(_: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            ops.answers.append(lambda _: refusal(503, "unavailable", **{"Retry-After": "600"}))
        for _ in range(205):
            ops.record()

    seen: list[int] = []
    async with GatewayClient(ops.url, "t0ken") as client, asyncio.timeout(20):
        followed = records(client, "processor", "medical.events.v1", lines=2, follow=True, sleep=sleep)
        async for record in followed:
            seen.append(record["offset"])
            if len(seen) == 600:
                break
    assert seen == list(range(1, 601))
    assert capsys.readouterr().err.count("still following") == 1


async def test_following_ends_with_ctrl_c(ops: FakeOps) -> None:
    ops.record()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "carebus_cli.main", "topics", "tail", "medical.events.v1", "--follow", "--json"),
        env={**os.environ, "CAREBUS_URL": ops.url, "CAREBUS_TOKEN": "t0ken"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert json.loads(await process.stdout.readline())["offset"] == 0
        ops.record()
        assert json.loads(await process.stdout.readline())["offset"] == 1
        process.send_signal(signal.SIGINT)
        _, told = await process.communicate()
    assert (process.returncode, told) == (130, b"")
