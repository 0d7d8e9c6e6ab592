"""Start a service with the failpoints that the harness wants now: `python -m tests.chaos.armed MODULE`.

A process reads its environment once and the supervisor starts it again with the same one; which failpoints are
armed changes from one start to the next. So they are in a file, which this puts into the environment.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

__all__ = ["arm", "home"]


def home() -> Path:
    """Where harness and services leave notes for each other."""
    return Path(os.environ["CHAOS_HOME"])


def arm(name: str) -> None:
    """Arm what `failpoints-NAME` says. To be called before anything of Carebus is imported."""
    assert not any(module.startswith("carebus_") for module in sys.modules), "too late to arm failpoints"
    wanted = home() / f"failpoints-{name}"
    if wanted.exists():
        os.environ["CAREBUS_FAILPOINTS"] = wanted.read_text().strip()
    os.environ["CAREBUS_ENVIRONMENT"] = "test"


if __name__ == "__main__":
    module = sys.argv.pop(1)
    arm(module.partition(".")[0].removeprefix("carebus_"))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
