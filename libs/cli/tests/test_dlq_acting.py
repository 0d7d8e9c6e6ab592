"""`carebus dlq redrive` and `discard`, against the operations API in memory."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections import Counter
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from carebus_cli.client import GatewayClient
from carebus_cli.dlq.redrive import Asked, Pace, Progress, Selection, ask_for, expected, follow
from carebus_cli.main import app

from .stand_in_ops import HASH, FakeOps, refusal

RUN = "00000000-0000-4000-8000-00000000abcd"


async def carebus(ops: FakeOps, *arguments: str, token: str = "t0ken", **env: str) -> Result:
    runner = CliRunner(env={"CAREBUS_URL": ops.url, "CAREBUS_TOKEN": token, **env})
    return await asyncio.to_thread(lambda: runner.invoke(app, list(arguments)))


def start(ops: FakeOps, *arguments: str) -> Any:
    return asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "carebus_cli.main", *arguments),
        env={**os.environ, "CAREBUS_URL": ops.url, "CAREBUS_TOKEN": "t0ken"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def asked(ops: FakeOps, action: str = "redrive") -> list[dict[str, Any]]:
    """The bodies that asked for something to be done."""
    return [body for path, body in ops.bodies if path == f"dead-letters/{action}" and not body["dryRun"]]


class Clock:
    """Time passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


# --- redrive --------------------------------------------------------------------------------------------------------


async def test_without_yes_it_is_only_told_what_would_be_done(ops: FakeOps) -> None:
    ops.add(3)
    ops.add(1, blocking=False, reason="conflict")
    result = await carebus(ops, "dlq", "redrive", "--all")
    assert result.exit_code == 0, result.output
    assert "Would redrive 3 dead letters of 1 patient." in result.stdout
    assert "left out: medical.events.v1-3-3  not-redrivable" in result.stdout
    assert "add --yes and --reason" in result.stdout
    assert (asked(ops), ops.pending, ops.carried) == ([], [], [])
    told = json.loads((await carebus(ops, "dlq", "redrive", "--all", "--json")).stdout)
    assert (told["dryRun"], told["matching"], len(told["skipped"])) == (True, 3, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--yes", "--reason", "fixed"],
        ["--all", "--yes"],
        ["--all", "--yes", "--reason", " "],
        ["an-id", "--all"],
        ["an-id", "--fingerprint", "f-1"],
        ["--all", "--rate", "0"],
    ],
)
@pytest.mark.parametrize("action", ["redrive", "discard"])
async def test_what_is_not_clearly_chosen_with_a_reason_is_not_done(
    ops: FakeOps, action: str, arguments: list[str]
) -> None:
    result = await carebus(ops, "dlq", action, *arguments)
    assert result.exit_code == 2
    assert ops.seen == []


async def test_all_pages_are_redriven_up_to_one_time_and_the_outcomes_told(ops: FakeOps) -> None:
    ops.add(25_000)
    result = await carebus(ops, "dlq", "redrive", "--all", "--yes", "--reason", "fixed", "--rate", "5000")
    assert result.exit_code == 0, result.output
    assert "25,000 dead letters asked for" in result.stdout
    assert "processed: 25,000" in result.stdout
    assert [body.get("cursor") is not None for body in asked(ops)] == [False, True]
    assert len({body["filter"]["until"] for body in asked(ops)}) == 1
    assert {(body["limit"], body["reason"]) for body in asked(ops)} == {(20_000, "fixed")}
    assert len({body["run"] for body in asked(ops)}) == 1
    assert sorted(ops.carried) == sorted(ops.letters)


async def test_only_what_the_filters_find_is_redriven(ops: FakeOps) -> None:
    ops.add(3)
    failure = {**ops.letters["medical.events.v1-3-0"]["failure"], "fingerprint": "f-2"}
    ops.add(4, failure=failure)
    given = ["--fingerprint", "f-2", "--patient", HASH, "--yes", "--reason", "fixed", "--json"]
    result = await carebus(ops, "dlq", "redrive", *given)
    told = json.loads(result.stdout)
    assert told.pop("run") == asked(ops)[0]["run"]
    assert told == {
        "dryRun": False,
        "action": "redrive",
        "complete": True,
        "requested": 4,
        "skipped": [],
        "moreSkipped": 0,
        "outcomes": {"processed": 4},
        "failedAgain": [],
        "byOthers": 0,
        "withoutOutcome": 0,
    }
    assert len(ops.carried) == 4


async def test_ids_are_asked_for_in_portions(ops: FakeOps) -> None:
    ids = [letter["id"] for letter in ops.add(1200)]
    async with GatewayClient(ops.url, "t0ken") as client:
        done, clock = Asked(), Clock()
        pace = Pace(5000, clock=clock, sleep=clock.sleep)
        await ask_for(client, "processor", "redrive", Selection(tuple(ids)), "fixed", done, run=RUN, pace=pace)
    assert [len(body["ids"]) for body in asked(ops)] == [1000, 200]
    assert (done.requested, done.complete) == (1200, True)


async def test_the_same_id_twice_is_asked_for_once(ops: FakeOps) -> None:
    (letter,) = ops.add(1)
    given = [letter["id"], letter["id"], "--yes", "--reason", "fixed"]
    result = await carebus(ops, "dlq", "redrive", *given)
    assert result.exit_code == 0, result.output
    assert asked(ops)[0]["ids"] == [letter["id"]]
    assert "processed: 1" in result.stdout


@pytest.mark.parametrize(
    ("changes", "why", "code"),
    [
        ({"redrives": 5}, "redrive-cap", 1),
        ({"blocking": False}, "not-redrivable", 1),
        # Somebody was quicker, which is as good.
        ({"status": "redriven", "outcome": {"status": "processed", "at": "2026-01-31T08:15:00Z"}}, "not-open", 0),
    ],
)
async def test_what_is_left_out_is_told(ops: FakeOps, changes: dict[str, Any], why: str, code: int) -> None:
    (letter,) = ops.add(1, **changes)
    result = await carebus(ops, "dlq", "redrive", letter["id"], "--yes", "--reason", "fixed")
    assert f"left out: {letter['id']}  {why}" in result.stdout
    assert result.exit_code == code


async def test_what_fails_again_is_told_with_its_new_dead_letter_and_ends_with_1(ops: FakeOps) -> None:
    ops.outcome = lambda letter: "dead-lettered" if letter["id"].endswith("-1") else "processed"
    ops.add(3)
    result = await carebus(ops, "dlq", "redrive", "--all", "--yes", "--reason", "fixed")
    assert result.exit_code == 1
    assert "dead-lettered: 1\n" in result.stdout
    assert "processed: 2\n" in result.stdout
    assert "failed again: medical.events.v1-3-1  now medical.events.v1-3-1~1" in result.stdout
    assert ops.letters["medical.events.v1-3-1~1"]["status"] == "open"


async def test_without_waiting_nothing_is_said_of_outcomes(ops: FakeOps) -> None:
    ops.add(3)
    result = await carebus(ops, "dlq", "redrive", "--all", "--yes", "--reason", "fixed", "--no-wait", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["outcomes"] is None
    assert (len(ops.pending), ops.carried) == (3, [])


async def test_the_rate_is_kept(ops: FakeOps) -> None:
    ops.add(35)
    clock = Clock()
    told: list[tuple[float, int]] = []
    async with GatewayClient(ops.url, "t0ken") as client:
        await ask_for(
            client,
            "processor",
            "redrive",
            Selection(filter={"until": "2099-01-01T00:00:00Z"}),
            "fixed",
            Asked(),
            run=RUN,
            pace=Pace(10, clock=clock, sleep=clock.sleep),
            tell=lambda count: told.append((clock.now, count)),
        )
    assert told == [(0, 10), (1, 20), (2, 30), (3, 35)]
    assert clock.slept == [1, 1, 1]


async def test_what_was_not_asked_for_costs_no_time(ops: FakeOps) -> None:
    ops.add(20, redrives=5)
    clock = Clock()
    async with GatewayClient(ops.url, "t0ken") as client:
        done = Asked()
        chosen = Selection(filter={"until": "2099-01-01T00:00:00Z"})
        pace = Pace(10, clock=clock, sleep=clock.sleep)
        await ask_for(client, "processor", "redrive", chosen, "fixed", done, run=RUN, pace=pace)
    assert (clock.slept, len(done.skipped)) == ([], 20)


async def test_pending_requests_are_waited_for_as_long_as_some_are_carried_out(ops: FakeOps) -> None:
    ops.pending = [(letter["id"], "redrive", "ops-1", "fixed", RUN) for letter in ops.add(400)]
    ops.owner_speed = 1
    clock = Clock()
    left: list[int] = []
    async with GatewayClient(ops.url, "t0ken") as client:
        pace = Pace(10, clock=clock, sleep=clock.sleep)
        progress = await follow(client, "processor", RUN, pace=pace, tell=left.append)
    assert progress == Progress(0, Counter(processed=400))
    # The stand-in's owner carries one out at each of the two questions.
    assert left == [*range(399, 0, -2), 0]
    assert clock.now > 90


async def test_what_was_asked_for_before_is_waited_for_too(ops: FakeOps) -> None:
    letters = ops.add(480)
    asked_before = [(letter["id"], "redrive", "ops-1", "fixed", None) for letter in letters[:400]]
    ops.pending = [*asked_before, *((letter["id"], "redrive", "ops-1", "fixed", RUN) for letter in letters[400:])]
    ops.owner_speed = 1
    clock = Clock()
    async with GatewayClient(ops.url, "t0ken") as client:
        progress = await follow(client, "processor", RUN, pace=Pace(10, clock=clock, sleep=clock.sleep))
    assert progress == Progress(0, Counter(processed=80))
    assert clock.now > 90


async def test_requests_that_nobody_carries_out_are_given_up_on(ops: FakeOps) -> None:
    ops.pending = [(letter["id"], "redrive", "ops-1", "fixed", RUN) for letter in ops.add(5)]
    ops.owner_speed = 0
    clock = Clock()
    async with GatewayClient(ops.url, "t0ken") as client:
        progress = await follow(client, "processor", RUN, pace=Pace(10, clock=clock, sleep=clock.sleep))
    assert (progress.pending, progress.outcomes) == (5, {})
    assert 90 <= clock.now < 91


async def test_outcomes_are_awaited_while_an_event_is_retried(ops: FakeOps) -> None:
    (letter,) = ops.add(1)
    at = "2026-01-31T08:15:00Z"
    letter |= {"status": "redriven", "redrive": {"by": "ops-1", "at": at, "reason": "fixed", "run": RUN}}
    letter["outcome"] = {"status": "retrying", "at": at, "deadLetter": None}
    clock = Clock()

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        if clock.now >= 5:
            letter["outcome"]["status"] = "processed"

    async def outcomes() -> dict[str, int]:
        async with GatewayClient(ops.url, "t0ken") as client:
            pace = Pace(1, clock=clock, sleep=sleep)
            return dict((await follow(client, "processor", RUN, pace=pace)).outcomes)

    assert await outcomes() == {"processed": 1}
    letter["outcome"]["status"] = "retrying"
    clock.now = -100.0
    assert await outcomes() == {"retrying": 1}


async def test_what_somebody_else_does_at_the_same_time_is_not_counted_as_ones_own(ops: FakeOps) -> None:
    letters = ops.add(5)
    # Asked for before, and not carried out yet.
    ops.pending = [(letter["id"], "redrive", "ops-2", "fixed", None) for letter in letters[:2]]
    given = ["--until", "2099-01-01T00:00:00Z", "--yes", "--reason", "fixed"]
    result = await carebus(ops, "dlq", "redrive", *given)
    assert result.exit_code == 0, result.output
    assert "5 dead letters asked for" in result.stdout
    assert "processed: 3\n" in result.stdout
    assert "done by somebody else meanwhile: 2\n" in result.stdout


async def test_what_is_still_open_after_its_request_has_no_outcome(
    ops: FakeOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("carebus_cli.dlq.doing.Pace", lambda rate: Pace(rate, clock=clock, sleep=clock.sleep))
    monkeypatch.setattr(ops, "carry_out", ops.pending.clear)
    ops.add(3)
    result = await carebus(ops, "dlq", "redrive", "--all", "--yes", "--reason", "fixed")
    assert result.exit_code == 1
    assert "3 have no outcome yet" in result.stderr


async def test_what_no_answer_names_is_left_out_too(ops: FakeOps) -> None:
    ops.add(1500, redrives=5)
    result = await carebus(ops, "dlq", "redrive", "--all", "--yes", "--reason", "fixed")
    assert result.exit_code == 1
    assert "and 1,480 more are left out" in result.stdout


async def test_those_without_an_outcome_are_told_with_where_to_look(
    ops: FakeOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("carebus_cli.dlq.doing.Pace", lambda rate: Pace(rate, clock=clock, sleep=clock.sleep))
    ops.add(3)
    ops.owner_speed = 0
    result = await carebus(ops, "dlq", "redrive", "--all", "--yes", "--reason", "fixed")
    assert result.exit_code == 1
    assert "3 have no outcome yet. They stay asked for" in result.stderr
    assert "`carebus consumers` shows whether processor is paused, away or behind" in result.stderr


async def test_a_consumer_that_has_stopped_itself_is_not_waited_for(ops: FakeOps) -> None:
    ops.add(3)
    ops.owner_speed = 0
    ops.paused = {"reason": "failures", "detail": None, "at": "2026-01-31T08:15:00Z"}
    result = await carebus(ops, "dlq", "redrive", "--all", "--yes", "--reason", "fixed")
    assert result.exit_code == 1
    assert "fix the cause, then `carebus consumers resume processor`" in result.stderr
    assert len(ops.pending) == 3


async def test_an_operator_of_a_hospital_redrives_its_own(ops: FakeOps) -> None:
    ops.add(3)
    ops.add(2, organizationId="south-hospital")
    given = ["--all", "--yes", "--reason", "fixed"]
    result = await carebus(ops, "dlq", "redrive", *given, token="hospital")
    assert result.exit_code == 0, result.output
    assert len(ops.carried) == 3


async def test_a_redrive_that_is_killed_half_way_goes_on_when_run_again(ops: FakeOps) -> None:
    ops.add(300)
    reached = asyncio.Event()
    never = asyncio.Event()

    def gate(path: str) -> asyncio.Event | None:
        if len(asked(ops)) < 3 or never.is_set():
            return None
        reached.set()
        return never

    ops.gate = gate
    given = ("dlq", "redrive", "--all", "--yes", "--reason", "fixed", "--rate", "50")
    process = await start(ops, *given)
    async with asyncio.timeout(30):
        await reached.wait()
        process.kill()
        await process.communicate()
    never.set()
    ops.carry_out()
    assert len(ops.carried) == 150
    result = await carebus(ops, *given[:-1], "100000")
    assert result.exit_code == 0, result.output
    assert "150 dead letters asked for" in result.stdout
    assert len(ops.carried) == len(set(ops.carried)) == 300


async def test_ctrl_c_tells_how_to_go_on_and_that_command_does(ops: FakeOps) -> None:
    ops.add(300)
    reached = asyncio.Event()
    never = asyncio.Event()

    def gate(path: str) -> asyncio.Event | None:
        if len(asked(ops)) < 2 or never.is_set():
            return None
        reached.set()
        return never

    ops.gate = gate
    process = await start(ops, "dlq", "redrive", "--type", "observation", "--yes", "--reason", "it's", "--rate", "50")
    async with asyncio.timeout(30):
        await reached.wait()
        process.send_signal(signal.SIGINT)
        _, told = await process.communicate()
    never.set()
    assert process.returncode == 130
    assert "Traceback" not in told.decode()
    assert "Interrupted. 100 were asked for, which are carried out all the same" in told.decode()
    (line,) = [line for line in told.decode().splitlines() if line.startswith("To go on: ")]
    first, *rest = shlex.split(line.removeprefix("To go on: "))
    assert (first, rest[rest.index("--reason") + 1]) == ("carebus", "it's")
    late = ops.add(1, createdAt="2099-01-01T00:00:00.000Z")[0]
    result = await carebus(ops, *rest)
    assert result.exit_code == 0, result.output
    assert len(ops.carried) == len(set(ops.carried)) == 300
    assert late["status"] == "open"


async def test_a_service_that_goes_away_half_way_is_waited_for(ops: FakeOps) -> None:
    ops.add(30)
    once = iter([True])

    def gate(path: str) -> None:
        if len(asked(ops)) == 1 and next(once, False):
            ops.answers.append(lambda _: refusal(503, "unavailable", **{"Retry-After": "0"}))

    ops.gate = gate
    result = await carebus(ops, "dlq", "redrive", "--all", "--yes", "--reason", "fixed", "--rate", "20")
    assert result.exit_code == 0, result.output
    assert len(ops.carried) == 30


async def test_a_refusal_half_way_tells_what_was_asked_for(ops: FakeOps) -> None:
    ops.add(30)
    once = iter([True])

    def gate(path: str) -> None:
        if len(asked(ops)) == 1 and next(once, False):
            ops.answers.append(lambda _: refusal(403, "forbidden"))

    ops.gate = gate
    result = await carebus(ops, "dlq", "redrive", "--all", "--yes", "--reason", "fixed", "--rate", "20")
    assert result.exit_code == 1
    assert "403 forbidden" in result.stderr
    assert "Stopped. 20 were asked for" in result.stderr
    assert "To go on: carebus dlq redrive --until " in result.stderr


async def test_the_bar_knows_how_many_there_are_where_the_dry_run_stops_counting(ops: FakeOps) -> None:
    ops.add(10_500)
    async with GatewayClient(ops.url, "t0ken") as client:
        chosen = Selection(filter={"until": "2099-01-01T00:00:00Z"})
        assert await expected(client, "processor", "redrive", chosen, "fixed") == 10_500
        typed = Selection(filter={"type": "observation"})
        assert await expected(client, "processor", "redrive", typed, "fixed") is None


async def test_at_least_so_many_is_told_as_such(ops: FakeOps) -> None:
    ops.add(10_500)
    result = await carebus(ops, "dlq", "discard", "--all")
    assert "Would discard at least 10,000 dead letters" in result.stdout


# --- discard --------------------------------------------------------------------------------------------------------


async def test_discarding_gives_up_what_cannot_be_redriven_too(ops: FakeOps) -> None:
    ops.add(2, blocking=False, reason="conflict")
    dry = await carebus(ops, "dlq", "discard", "--since", "1d")
    assert "Would discard 2 dead letters" in dry.stdout
    assert ops.carried == []
    result = await carebus(ops, "dlq", "discard", "--since", "1d", "--yes", "--reason", "sent anew")
    assert result.exit_code == 0, result.output
    assert "discarded: 2" in result.stdout
    assert {letter["discard"]["reason"] for letter in ops.letters.values()} == {"sent anew"}
