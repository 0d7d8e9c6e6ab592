"""Which process is meant: a process id and when it started, since ids are used again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Identity", "identify"]


@dataclass(frozen=True, slots=True)
class Identity:
    """`started` is opaque: equal for two looks at the same process, different after a reboot or a reuse of the id."""

    pid: int
    started: str

    def alive(self) -> bool:
        return identify(self.pid) == self

    def end(self, deadline_seconds: float) -> None:
        """SIGTERM, then SIGKILL at the deadline; returns when it is gone. Blocks. Nobody else is ever signalled."""
        for sign, seconds in ((signal.SIGTERM, deadline_seconds), (signal.SIGKILL, 5.0)):
            if not self.alive():
                return
            try:
                os.kill(self.pid, sign)
            except ProcessLookupError:
                return
            until = time.monotonic() + seconds
            while time.monotonic() < until and self.alive():
                time.sleep(0.02)


def identify(pid: int) -> Identity | None:
    """The process that has the id now; None if there is none, or only a zombie."""
    if Path("/proc/self/stat").exists():
        return _from_proc(pid)
    told = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split(maxsplit=1)
    return Identity(pid, told[1].strip()) if len(told) == 2 and not told[0].startswith("Z") else None


def _from_proc(pid: int) -> Identity | None:
    try:
        # After the command's name, which is in brackets and may hold anything: state, then 19th the start time.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else Identity(pid, f"{boot}/{fields[19]}")
