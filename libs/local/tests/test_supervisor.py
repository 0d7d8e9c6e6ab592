from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio

from carebus_local import supervisor as supervision
from carebus_local.errors import StartFailed
from carebus_local.program import Check, Program
from carebus_local.state import Status
from carebus_local.supervisor import Supervisor
from carebus_local.testing import eventually

SLEEPER = "import time; time.sleep(600)"


async def well() -> None:
    pass


def program(script: str, *, check: Check = well, start: float = 20, stop: float = 5) -> Program:
    return Program(
        name="child",
        kind="service",
        command=(sys.executable, "-u", "-c", script),
        url="http://127.0.0.1:1",
        check=check,
        start_deadline=timedelta(seconds=start),
        stop_deadline=timedelta(seconds=stop),
    )


def file_exists(path: Path) -> Check:
    async def check() -> None:
        if not path.exists():
            raise ConnectionError("no file yet")

    return check


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest_asyncio.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    running = Supervisor(tmp_path)
    yield running
    await running.stop_all()


async def test_a_start_returns_once_the_child_is_healthy_and_not_before(supervisor: Supervisor, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"import pathlib, time; time.sleep(0.3); pathlib.Path({str(ready)!r}).touch(); time.sleep(600)"
    await supervisor.start(program(script, check=file_exists(ready)))
    assert ready.exists()
    assert [status.health for status in supervisor.status()] == ["healthy"]


async def test_a_killed_child_is_started_again(supervisor: Supervisor) -> None:
    await supervisor.start(program(SLEEPER))
    killed = supervisor.pid("child")
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: supervisor.status()[0].restarts == 1 and supervisor.status()[0].health == "healthy")
    assert supervisor.pid("child") != killed


async def test_a_child_that_keeps_dying_is_started_ever_later(supervisor: Supervisor, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    script = f"import time; open({str(starts)!r}, 'a').write(f'{{time.time()}}\\n'); time.sleep(0.1)"
    await supervisor.start(program(script))
    times = [float(line) for line in await eventually(lambda: lines_of(starts, at_least=4))]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[1] - gaps[0] > 0.15
    assert gaps[2] - gaps[1] > 0.3


def lines_of(path: Path, at_least: int) -> list[str]:
    lines = path.read_text().splitlines()
    return lines if len(lines) >= at_least else []


async def test_a_child_that_ends_at_its_start_is_an_error_with_its_last_words_and_its_log(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    with pytest.raises(StartFailed) as failure:
        await supervisor.start(
            program("print('no configuration'); raise SystemExit(3)", check=file_exists(tmp_path / "no"))
        )
    told = str(failure.value)
    assert "child did not start: it ended with exit code 3" in told
    assert "no configuration" in told
    assert str(tmp_path / "logs" / "child.log") in told


async def test_a_child_that_does_not_become_healthy_in_time_is_an_error_with_the_reason_and_is_ended(
    tmp_path: Path,
) -> None:
    told: list[Status] = []
    supervisor = Supervisor(tmp_path, on_change=told.append)
    with pytest.raises(StartFailed, match=r"not healthy within 0.5 s \(ConnectionError: no file yet\)"):
        await supervisor.start(program(SLEEPER, check=file_exists(tmp_path / "never"), start=0.5))
    pid = told[0].pid
    assert pid is not None
    assert gone(pid)
    assert supervisor.status()[0].health == "stopped"


async def test_a_command_that_does_not_exist_is_an_error_that_names_it(supervisor: Supervisor, tmp_path: Path) -> None:
    absent = Program("child", "part", ("/no/such/program",), "", check=file_exists(tmp_path / "no"))
    with pytest.raises(StartFailed, match="/no/such/program"):
        await supervisor.start(absent)


async def test_a_child_that_ignores_sigterm_is_killed_at_its_deadline(supervisor: Supervisor, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = (
        "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(600)"
    )
    await supervisor.start(program(script, check=file_exists(ready), stop=0.3))
    pid = supervisor.pid("child")
    await supervisor.stop("child")
    assert gone(pid)


async def test_a_child_is_asked_to_end_before_it_is_killed(supervisor: Supervisor, tmp_path: Path) -> None:
    ready, ended = tmp_path / "ready", tmp_path / "ended"
    script = (
        "import pathlib, signal, sys, time; "
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(ended)!r}).touch(), sys.exit())); "
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(600)"
    )
    await supervisor.start(program(script, check=file_exists(ready)))
    await supervisor.stop("child")
    assert ended.exists()


async def test_a_stopped_child_stays_stopped_until_it_is_started_again(supervisor: Supervisor) -> None:
    await supervisor.start(program(SLEEPER))
    first = supervisor.pid("child")
    await supervisor.stop("child")
    with pytest.raises(LookupError):
        supervisor.pid("child")
    await supervisor.start_again("child")
    assert supervisor.pid("child") != first


async def test_a_child_that_runs_but_is_ill_is_told_with_the_reason_until_it_is_well(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_CHECK_EVERY", timedelta(milliseconds=20))
    well_now = tmp_path / "well"
    well_now.touch()
    await supervisor.start(program(SLEEPER, check=file_exists(well_now)))
    pid = supervisor.pid("child")
    well_now.unlink()
    await eventually(lambda: supervisor.status()[0].health == "unhealthy")
    assert supervisor.status()[0].detail == "ConnectionError: no file yet"
    well_now.touch()
    await eventually(lambda: supervisor.status()[0].health == "healthy")
    assert supervisor.pid("child") == pid, "illness alone is no reason for a restart"


async def test_a_hanging_check_does_not_keep_a_stop_waiting(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_CHECK_EVERY", timedelta(milliseconds=20))
    asked = 0

    async def hangs_later() -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            await asyncio.sleep(600)

    await supervisor.start(program(SLEEPER, check=hangs_later))
    await eventually(lambda: asked > 1)
    async with asyncio.timeout(3):
        await supervisor.stop("child")


async def test_a_cancelled_start_leaves_no_child(tmp_path: Path) -> None:
    told: list[Status] = []
    supervisor = Supervisor(tmp_path, on_change=told.append)
    starting = asyncio.create_task(supervisor.start(program(SLEEPER, check=file_exists(tmp_path / "never"))))
    pid = await eventually(lambda: told[0].pid)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert pid is not None
    assert gone(pid)


async def test_each_run_has_its_own_log_and_restarts_within_it_append(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "child.log"
    for run in ("first", "second"):
        supervisor = Supervisor(tmp_path)
        await supervisor.start(program(f"import time; print({run!r}); time.sleep(600)"))
        await eventually(lambda: log.read_text() != "")
        if run == "second":
            os.kill(supervisor.pid("child"), signal.SIGKILL)
            await eventually(lambda: log.read_text().count("second") == 2)
        await supervisor.stop_all()
    assert log.read_text() == "second\nsecond\n"
    assert log.with_name("child.log.1").read_text() == "first\n"


async def test_services_are_stopped_before_the_parts_they_write_to(tmp_path: Path) -> None:
    stopped: list[str] = []
    supervisor = Supervisor(
        tmp_path, on_change=lambda status: stopped.append(status.name) if status.health == "stopped" else None
    )
    for name, kind in (("part", "part"), ("service", "service")):
        await supervisor.start(
            Program(name, kind, (sys.executable, "-c", SLEEPER), "", check=well)  # type: ignore[arg-type]
        )
    await supervisor.stop_all()
    assert stopped == ["service", "part"]
