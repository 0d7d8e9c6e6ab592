"""`carebus doctor`: what this machine lacks, and what to do about it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Final

import typer

from carebus_cli.connection import DEFAULT_STATE_DIR, JsonOption, StateDirOption
from carebus_cli.tables import Cell, print_table
from carebus_local.machine import examine

__all__ = ["doctor"]

_COLOURS: Final = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(state_dir: StateDirOption = DEFAULT_STATE_DIR, as_json: JsonOption = False) -> None:
    """Look at Python, Java, the parts, disk, memory, ports, versions and the state. Ends with 1 at a problem."""
    findings = examine(state_dir)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        rows: list[list[Cell]] = [[it.what, (it.verdict, _COLOURS[it.verdict]), it.found, it.to_do] for it in findings]
        print_table(["what", "verdict", "found", "to do"], rows)
    if any(finding.verdict == "problem" for finding in findings):
        sys.exit(1)
