"""Whatever ends a supervisor, nothing it started outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from carebus_local.identity import identify
from carebus_local.testing import eventually

SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from carebus_local.program import Program
from carebus_local.supervisor import Supervisor

def ready(number):
    async def check():
        if not Path(sys.argv[1], f"ready-{number}").exists():
            raise ConnectionError("it does not run yet")
    return check

async def main():
    supervisor = Supervisor(Path(sys.argv[1]))
    for number in range(3):
        touch = f"import pathlib; pathlib.Path({sys.argv[1]!r}, 'ready-{number}').touch()"
        script = f"import signal; signal.signal(15, signal.SIG_IGN); {touch}; signal.pause()"
        command = (sys.executable, "-c", script)
        await supervisor.start(Program(f"child-{number}", "service", command, "", ready(number)))
    print(*(status.pid for status in supervisor.status()), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
async def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path)], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        children = [identify(int(pid)) for pid in supervisor.stdout.readline().split()]
        assert len(children) == 3
        assert None not in children
        os.kill(supervisor.pid, signal.SIGKILL)
        supervisor.wait()
    await eventually(lambda: not any(child.alive() for child in children if child is not None), seconds=5)


def test_a_child_whose_supervisor_died_before_it_was_ready_does_not_start(tmp_path: Path) -> None:
    guard = Path(__file__).parents[1] / "src" / "carebus_local" / "guard.py"
    touched = tmp_path / "touched"
    ended = subprocess.run(
        [sys.executable, "-I", "-S", str(guard), "1", "touch", str(touched)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "the supervisor is gone" in ended.stderr
    assert not touched.exists()
