"""`up`, `down`, `status` and `logs` as a user types them, with stand-ins for the services."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from carebus_local import state
from carebus_local.parts import StackUrls
from carebus_local.testing import eventually

HERE = Path(__file__).parent
STAND_IN = HERE.parents[1] / "local" / "tests" / "stand_in.py"
COMMAND = (sys.executable, str(HERE / "stand_in_carebus.py"), str(STAND_IN))

Carebus = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def env(stack: StackUrls, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, **stack.as_env(), "CAREBUS_STATE_DIR": str(tmp_path / "state")}


@pytest.fixture
def carebus(env: dict[str, str]) -> Iterator[Carebus]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *arguments], env=env, capture_output=True, text=True, check=False, timeout=90)

    yield run
    run("down")


@pytest.fixture
def state_dir(env: dict[str, str]) -> Path:
    return Path(env["CAREBUS_STATE_DIR"])


def processes(status: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {process["name"]: process for process in json.loads(status.stdout)["processes"]}


async def test_up_stays_until_ctrl_c_and_then_ends_with_everything_it_started(
    env: dict[str, str], state_dir: Path
) -> None:
    with subprocess.Popen([*COMMAND, "up"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        await eventually(lambda: (now := state.read(state_dir)) is not None and now.ready, seconds=60)
        now = state.read(state_dir)
        assert now is not None
        up.send_signal(signal.SIGINT)
        out, err = up.communicate(timeout=30)
    assert up.returncode == 0
    assert f"gateway      {now.urls['gateway']}\n" in out
    assert err.endswith("Stopped.\n")
    assert not any(identity.alive() for process in now.processes if (identity := process.identity()) is not None)


async def test_ctrl_c_during_the_start_ends_it_at_once(env: dict[str, str], state_dir: Path) -> None:
    hanging = [COMMAND[0], COMMAND[1], "-cimport time; time.sleep(600)"]
    with subprocess.Popen([*hanging, "up"], env=env, stderr=subprocess.PIPE, text=True) as up:
        await eventually(lambda: (now := state.read(state_dir)) is not None and len(now.processes) == 7, seconds=60)
        up.send_signal(signal.SIGINT)
        _, err = up.communicate(timeout=30)
    assert up.returncode == 130
    assert "Traceback" not in err


def test_a_detached_up_is_seen_by_status_logs_and_a_second_up_and_ended_by_down(
    carebus: Carebus, state_dir: Path
) -> None:
    up = carebus("up", "--detach", "--processors", "2")
    assert up.returncode == 0, up.stderr
    assert "gateway      http://127.0.0.1:" in up.stdout

    status = carebus("status", "--json")
    assert status.returncode == 0
    told = processes(status)
    assert {"kafka", "store", "valkey", "gateway", "ingest", "processor", "processor-2", "claims"} == set(told)
    assert all(process["health"] == "healthy" for process in told.values())
    assert all(isinstance(told[name]["pid"], int) for name in ("gateway", "ingest", "processor", "claims"))
    assert "processor-2  service" in carebus("status").stdout

    assert carebus("logs", "processor-2").stdout == "stand-in ready\n"
    no_log = carebus("logs", "procesor")
    assert no_log.returncode == 1
    assert "no log of 'procesor'; there are: claims, gateway, ingest, processor, processor-2" in no_log.stderr

    for again in (carebus("up"), carebus("up", "--detach")):
        assert again.returncode == 1
        assert f"already runs Carebus on {state_dir}" in again.stderr
        assert "carebus down" in again.stderr
    assert json.loads(carebus("status", "--json").stdout)["healthy"], "a refused second one must not disturb the first"

    assert carebus("down").returncode == 0
    ended = carebus("status", "--json")
    assert ended.returncode == 1
    assert {process["health"] for process in processes(ended).values()} == {"stopped"}


def test_a_detached_up_that_fails_says_why(env: dict[str, str], tmp_path: Path) -> None:
    failing = tmp_path / "failing.py"
    failing.write_text("raise SystemExit('CAREBUS_JWKS is missing')")
    up = subprocess.run(
        [COMMAND[0], COMMAND[1], str(failing), "up", "--detach"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert up.returncode == 1
    assert "did not start: it ended with exit code 1" in up.stderr
    assert "CAREBUS_JWKS is missing" in up.stderr
    assert "logs/supervisor.log" in up.stderr


async def test_status_ends_with_1_while_a_service_is_down(carebus: Carebus, state_dir: Path) -> None:
    assert carebus("up", "--detach").returncode == 0
    now = state.read(state_dir)
    assert now is not None
    (claims,) = [process for process in now.processes if process.name == "claims"]
    assert claims.pid is not None
    os.kill(claims.pid, signal.SIGSTOP)  # Alive, but it answers nobody.
    try:
        await eventually(lambda: carebus("status").returncode == 1, seconds=60)
        assert processes(carebus("status", "--json"))["claims"]["health"] == "unhealthy"
    finally:
        os.kill(claims.pid, signal.SIGCONT)
    await eventually(lambda: carebus("status").returncode == 0, seconds=60)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
async def test_after_the_supervisor_was_killed_status_tells_and_up_starts_again(
    carebus: Carebus, state_dir: Path
) -> None:
    assert carebus("up", "--detach").returncode == 0
    before = state.read(state_dir)
    assert before is not None
    os.kill(before.supervisor.pid, signal.SIGKILL)
    children = [identity for process in before.processes if (identity := process.identity()) is not None]
    await eventually(lambda: not any(identity.alive() for identity in children), seconds=5)

    status = carebus("status", "--json")
    assert status.returncode == 1
    assert {process["health"] for process in processes(status).values()} == {"stopped"}

    assert carebus("up", "--detach").returncode == 0
    after = state.read(state_dir)
    assert after is not None
    assert after.urls == before.urls
    assert carebus("status").returncode == 0


async def test_logs_follow_a_service_over_its_restart(carebus: Carebus, env: dict[str, str], state_dir: Path) -> None:
    assert carebus("up", "--detach").returncode == 0
    now = state.read(state_dir)
    assert now is not None
    (claims,) = [process for process in now.processes if process.name == "claims"]
    assert claims.pid is not None
    with subprocess.Popen([*COMMAND, "logs", "claims", "-f"], env=env, stdout=subprocess.PIPE, text=True) as follow:
        assert follow.stdout is not None
        assert follow.stdout.readline() == "stand-in ready\n"
        os.kill(claims.pid, signal.SIGKILL)
        assert follow.stdout.readline() == "stand-in ready\n"
        follow.send_signal(signal.SIGINT)
        assert follow.wait(timeout=10) == 130


def test_where_nothing_runs_status_says_so_and_down_is_content(carebus: Carebus) -> None:
    status = carebus("status", "--json")
    assert status.returncode == 1
    assert json.loads(status.stdout)["processes"] == []
    assert "Start it with `carebus up`" in carebus("status").stderr
    down = carebus("down")
    assert down.returncode == 0
    assert "Nothing runs" in down.stderr


def test_a_malformed_port_is_refused_before_anything_starts(carebus: Carebus, state_dir: Path) -> None:
    refused = carebus("up", "--port", "gateway=http")
    assert refused.returncode == 2
    assert "NAME=PORT" in refused.stderr
    assert not state_dir.exists()
