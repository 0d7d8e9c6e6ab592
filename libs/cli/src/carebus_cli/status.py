"""`carebus status` and `carebus logs`."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Annotated

import typer

from carebus_cli.connection import DEFAULT_STATE_DIR, JsonOption, StateDirOption
from carebus_cli.meter import plain, stderr
from carebus_cli.tables import Cell, print_table
from carebus_local import state
from carebus_local.errors import LocalError
from carebus_local.logs import last_lines

__all__ = ["logs", "status"]

_COLOURS = {"healthy": "green", "starting": "yellow", "restarting": "yellow", "unhealthy": "red", "stopped": "red"}


def status(state_dir: StateDirOption = DEFAULT_STATE_DIR, as_json: JsonOption = False) -> None:
    """Tell every part and service: name, process, URL and health. Ends with 1 if something is not healthy."""
    now = state.read(state_dir)
    up = now is not None and now.supervisor.alive()
    processes = [_as_it_is(process, up) for process in now.processes] if now is not None else []
    healthy = up and bool(processes) and all(process.health == "healthy" for process in processes)
    if as_json:
        told = {
            "healthy": healthy,
            "supervisor": now.supervisor.pid if now is not None and up else None,
            "stateDir": str(state_dir.absolute()),
            "urls": now.urls if now is not None and up else {},
            "processes": [_as_json(process) for process in processes],
        }
        typer.echo(json.dumps(told, indent=2))
    elif now is None or not up:
        stderr.print(f"Nothing runs on {state_dir}. Start it with `carebus up`.")
    else:
        print_table(["name", "kind", "pid", "url", "restarts", "health"], _rows(processes))
    if not healthy:
        sys.exit(1)


def logs(
    name: Annotated[str, typer.Argument(help="A part or service, or `supervisor`.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it is written, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines to begin with.")] = 100,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Print the log of a part or service of the latest run."""
    there = dict(sorted((path.stem, path) for path in (state_dir / "logs").glob("*.log")))
    if name not in there:
        known = ", ".join(there) or "none yet"
        raise LocalError(f"{state_dir} has no log of {name!r}; there are: {known}.")
    try:
        _print_log(there[name], lines, follow=follow)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # Whoever reads has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _as_it_is(process: state.Status, up: bool) -> state.Status:
    """The recorded status, unless the process it tells of is gone or nobody keeps the record any more."""
    identity = process.identity()
    if identity is not None and not identity.alive():
        return replace(process, pid=None, health="stopped" if not up else "restarting", detail="its process is gone")
    return process if up or identity is not None else replace(process, health="stopped")


def _as_json(process: state.Status) -> dict[str, object]:
    return {key: value for key, value in asdict(process).items() if key != "started"}


def _rows(processes: list[state.Status]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for process in processes:
        detail = f" ({plain(process.detail)})" if process.detail and process.health != "healthy" else ""
        health = (process.health + detail, _COLOURS[process.health])
        pid = "" if process.pid is None else str(process.pid)
        rows.append([process.name, process.kind, pid, process.url, str(process.restarts), health])
    return rows


def _print_log(path: Path, lines: int, *, follow: bool) -> None:
    file: IO[bytes] = path.open("rb")
    try:
        end = file.seek(0, 2)
        if lines:
            typer.echo(last_lines(path, lines))
        while follow:
            end, file = _print_new(path, file, end)
            time.sleep(0.1)
    finally:
        file.close()


def _print_new(path: Path, file: IO[bytes], end: int) -> tuple[int, IO[bytes]]:
    """Print what was written after `end`; go over to the new file if a restart put this one aside."""
    file.seek(end)
    while chunk := file.read(64 * 1024):
        typer.echo(chunk, nl=False)
    sys.stdout.flush()
    end = file.tell()
    try:
        if os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:  # noqa: PTH116 - both are asked alike
            file.close()
            return 0, path.open("rb")
    except FileNotFoundError:
        pass
    return end, file
