"""`carebus demo`, which `make run` calls."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Annotated

import typer

from carebus_cli.connection import DEFAULT_STATE_DIR, JsonOption, StateDirOption

__all__ = ["demo"]


def demo(
    *,
    once: Annotated[
        bool, typer.Option("--once", help="Stop after the summary; exit code 0 only if all is well.")
    ] = False,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    patients: Annotated[int, typer.Option(min=1, max=2000, help="Patients of the day; each has some 28 events.")] = 150,
    rate: Annotated[float, typer.Option(min=1, help="Events posted a second.")] = 200,
    drain: Annotated[float, typer.Option(min=1, help="Seconds without progress after which waiting ends.")] = 60,
    as_json: JsonOption = False,
) -> None:
    """Start everything, stream a hospital's day through POST /events, and show what becomes of it.

    Afterwards every patient's history is read back through the gateway and compared with what was accepted.
    Stays up until Ctrl-C, unless --once.
    """
    # `make run` begins before Python does: it may say when.
    started_at = float(os.environ.get("CAREBUS_STARTED_AT") or time.time())
    from carebus_cli.demo.run import run_demo  # noqa: PLC0415 - Kafka's client is slow to import

    work = run_demo(
        state_dir, once=once, patients=patients, rate=rate, drain=drain, as_json=as_json, started_at=started_at
    )
    sys.exit(asyncio.run(work))
