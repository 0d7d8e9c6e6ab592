"""Start a service with the failpoints that the harness wants: `python -m tests.chaos.armed MODULE`.

A process reads its environment once and the supervisor starts it again with the same one, while the harness wants now
one failpoint and now another. So what is wanted is in a file, which a thread of each process watches.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carebus_common.failpoints import Armed

__all__ = ["arm", "home"]


def home() -> Path:
    """Where harness and services leave notes for each other."""
    return Path(os.environ["CHAOS_HOME"])


def arm(service: str) -> None:
    """Arm what `failpoints-SERVICE-PID` says, or else `failpoints-SERVICE`, now and later.

    To be called before anything of Carebus is imported.
    """
    assert not any(module.startswith("carebus_") for module in sys.modules), "too late to arm failpoints"
    # That it may be armed later, it has to be armed from the start.
    os.environ |= {"CAREBUS_FAILPOINTS": "before-emit=stop@0", "CAREBUS_ENVIRONMENT": "test"}
    from carebus_common.failpoints import Armed, failpoint

    assert isinstance(failpoint, Armed)
    failpoint.rules = _wanted(service)
    threading.Thread(target=_watch, args=(service, failpoint), name="failpoints", daemon=True).start()


def _wanted(service: str) -> str:
    for name in (f"failpoints-{service}-{os.getpid()}", f"failpoints-{service}"):
        with contextlib.suppress(FileNotFoundError):
            return (home() / name).read_text().strip()
    return ""


def _watch(service: str, failpoint: Armed) -> None:
    while True:
        time.sleep(0.2)
        wanted = _wanted(service)
        if wanted != failpoint.rules:
            failpoint.rules = wanted


if __name__ == "__main__":
    module = sys.argv.pop(1)
    arm(module.partition(".")[0].removeprefix("carebus_"))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
