from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from carebus_local import state
from carebus_local.errors import StateDirBusy
from carebus_local.identity import Identity, identify
from carebus_local.state import State, Status

GONE = Identity(2**22 + 1, "never")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that would run for ever."""
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield running
    running.kill()
    running.wait()


def left_over(identity: Identity) -> State:
    return State(
        supervisor=GONE,
        ready=True,
        processes=(Status("valkey", "part", "redis://", "healthy", pid=identity.pid, started=identity.started),),
    )


def identity_of(process: subprocess.Popen[bytes]) -> Identity:
    identity = identify(process.pid)
    assert identity is not None
    return identity


def test_what_an_earlier_run_left_running_is_ended(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    state.write(tmp_path, left_over(identity_of(process)))
    ended = state.clean_up(tmp_path)
    assert [status.pid for status in ended] == [process.pid]
    assert process.poll() is not None


def test_a_foreign_process_that_got_a_recorded_id_is_left_alone(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    identity = identity_of(process)
    state.write(tmp_path, left_over(Identity(identity.pid, identity.started + "0")))
    assert state.clean_up(tmp_path) == []
    assert process.poll() is None


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        state.write(tmp_path, left_over(identity_of(stubborn)))
        state.clean_up(tmp_path, deadline_seconds=0.2)
        assert stubborn.wait(timeout=5) == -9


def test_an_id_alone_does_not_make_a_process_alive(process: subprocess.Popen[bytes]) -> None:
    identity = identity_of(process)
    assert identity.alive()
    assert not Identity(identity.pid, "another boot/1").alive()
    process.kill()
    process.wait()
    assert not identity.alive()


def test_a_second_supervisor_on_a_state_directory_is_told_who_has_it(tmp_path: Path) -> None:
    with state.lock(tmp_path):
        state.write(tmp_path, State(supervisor=state.myself(), ready=True))
        with pytest.raises(StateDirBusy, match=f"process {os.getpid()} already runs Carebus on {tmp_path}"):
            state.lock(tmp_path)


def test_a_state_directory_is_free_again_when_its_owner_let_go(tmp_path: Path) -> None:
    state.lock(tmp_path).close()
    state.lock(tmp_path).close()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = State(
        supervisor=state.myself(),
        ready=True,
        processes=(Status("kafka", "part", "127.0.0.1:9092", "unhealthy", 7, "x", 2, "no answer", "kafka.log"),),
        urls={"gateway": "http://127.0.0.1:8000"},
    )
    state.write(tmp_path, written)
    assert state.read(tmp_path) == written


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"supervisor": 1}', "\0"])
def test_an_unreadable_state_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    assert state.read(tmp_path) is None
