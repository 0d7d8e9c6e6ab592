"""The flight recorder: what was being handled when a process died is found by the next one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from carebus_common.consumer import Recorder, open_recorder

SCRIPT = """
import os, signal, sys, time
from datetime import timedelta
from pathlib import Path
from carebus_common.consumer import Recorder
recorder = Recorder(Path(sys.argv[1]), "group")
recorder.begin(3, 41)
recorder.end()
recorder.hold(1, 7)
recorder.release(recorder.hold(2, 8))
recorder.begin(3, 42)
if sys.argv[2] == "hang":
    recorder.watch(timedelta(milliseconds=200))
    while True:
        pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def run(directory: Path, how: str) -> int:
    return subprocess.run([sys.executable, "-c", SCRIPT, str(directory), how], timeout=30, check=False).returncode


def test_after_a_kill_the_next_process_knows_what_was_being_handled(tmp_path: Path) -> None:
    assert run(tmp_path, "die") == -signal.SIGKILL
    recorder = Recorder(tmp_path, "group")
    assert sorted(recorder.interrupted) == [(1, 7), (3, 42)]
    recorder.reported()
    recorder.close()
    again = Recorder(tmp_path, "group")
    assert again.interrupted == []
    again.close()


def test_a_handler_that_does_not_return_ends_the_process_and_is_found_too(tmp_path: Path) -> None:
    assert run(tmp_path, "hang") == 86
    recorder = Recorder(tmp_path, "group")
    assert (3, 42) in recorder.interrupted
    recorder.close()


def test_two_processes_on_one_file_do_not_mix_their_notes(tmp_path: Path) -> None:
    first, second = Recorder(tmp_path, "group"), Recorder(tmp_path, "group")
    second.begin(1, 1)
    first.close()
    assert Recorder(tmp_path, "group").interrupted == []
    second.close()


def test_a_directory_that_cannot_be_written_to_is_done_without(tmp_path: Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    recorder = open_recorder(blocked / "below", "group")
    recorder.begin(1, 1)
    recorder.end()
    recorder.close()


def test_more_coroutines_than_it_has_room_for_are_handled_unnoted(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "group")
    slots = [recorder.hold(0, n) for n in range(5000)]
    assert None in slots
    for slot in slots:
        recorder.release(slot)
    assert recorder.hold(0, 1) is not None
    recorder.close()
