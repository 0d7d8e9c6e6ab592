"""`carebus up` and `carebus down`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from carebus_cli.connection import DEFAULT_STATE_DIR, StateDirOption
from carebus_cli.meter import stderr, stdout
from carebus_cli.progress import Waiting
from carebus_local import state
from carebus_local.errors import LocalError
from carebus_local.logs import last_words, log_path, rotate
from carebus_local.system import PORT_NAMES, running

__all__ = ["down", "up"]

# Services get 10 s and then the parts 20 s to stop; a little is left for the machine.
_DOWN_SECONDS: Final = 40.0
_DETACH: Final = ("--detach", "-d")


def up(
    *,
    processors: Annotated[int, typer.Option(min=1, max=64, help="Processor replicas.")] = 1,
    ingest: Annotated[int, typer.Option(min=1, max=64, help="Ingest replicas, behind one port.")] = 1,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    port: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PORT", help=f"A port to take as it is; NAME is one of {', '.join(PORT_NAMES)}."),
    ] = None,
    log_format: Annotated[str, typer.Option(help="How services log: console or json.")] = "console",
    detach: Annotated[bool, typer.Option(*_DETACH, help="Return once all is healthy.")] = False,
) -> None:
    """Start Kafka, the store, Valkey and the services, and keep them up until Ctrl-C or `carebus down`.

    What dies is started again. A part that the environment gives (CAREBUS_KAFKA_BOOTSTRAP, CAREBUS_MONGO_URL,
    CAREBUS_REDIS_URL) is used instead of one of our own.
    """
    if log_format not in ("console", "json"):
        raise typer.BadParameter("console or json", param_hint="--log-format")
    ports = dict(_parse_port(given) for given in port or [])
    if detach:
        _detach(state_dir)
        return
    sys.exit(asyncio.run(_up(state_dir, processors, ingest, ports, log_format)))


def down(state_dir: StateDirOption = DEFAULT_STATE_DIR) -> None:
    """Stop what `carebus up` started on the state directory. Nothing to stop is no error."""
    running_state = state.read(state_dir)
    if running_state is None or not running_state.supervisor.alive():
        if state_dir.exists():
            with state.lock(state_dir):
                for left in state.clean_up(state_dir):
                    stderr.print(f"{left.name:<12} ended, left over by an earlier run (process {left.pid})")
        stderr.print(f"Nothing runs on {state_dir}.")
        return
    supervisor = running_state.supervisor
    with Waiting(f"stopping process {supervisor.pid}") as waiting:
        os.kill(supervisor.pid, signal.SIGTERM)
        deadline = time.monotonic() + _DOWN_SECONDS
        while supervisor.alive():
            if time.monotonic() > deadline:
                waiting.note("supervisor", f"did not stop within {_DOWN_SECONDS:g} s and is killed, with its children")
                supervisor.end(0)
                break
            time.sleep(0.05)
            waiting.tick()
    stderr.print("Stopped.")


async def _up(state_dir: Path, processors: int, ingest: int, ports: dict[str, int], log_format: str) -> int:
    stop = asyncio.Event()
    ready = False
    starting = asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(130)  # The second one: the children die with this process.
        stop.set()
        if not ready and starting is not None:
            starting.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    ticking: asyncio.Task[None] | None = None
    try:
        with Waiting("starting") as waiting:
            ticking = asyncio.create_task(_tick(waiting))
            up_to_now = running(
                state_dir,
                processors=processors,
                ingest=ingest,
                ports=ports,
                log_format=log_format,
                on_progress=waiting.note,
            )
            async with up_to_now as system:
                ready = True
                waiting.done()
                for name, url in system.urls.items():
                    stdout.print(f"{name:<12} {url}")
                stderr.print(f"Carebus is up; state and logs in {state_dir}. Ctrl-C stops it.")
                await stop.wait()
                waiting.start("stopping")
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        return 130
    finally:
        if ticking is not None:
            ticking.cancel()
    stderr.print("Stopped.")
    return 0


async def _tick(waiting: Waiting) -> None:
    while True:
        await asyncio.sleep(0.5)
        waiting.tick()


def _detach(state_dir: Path) -> None:
    """Run the same command, less this option, in a session of its own and follow its state until all is healthy.

    Raises LocalError.
    """
    state_dir = state_dir.absolute()
    log = log_path(state_dir, "supervisor")
    log.parent.mkdir(parents=True, exist_ok=True)
    with state.lock(state_dir):  # Refuse before the running one's log is put aside.
        rotate(log)
    with log.open("ab") as out, Waiting("starting") as waiting:
        child = subprocess.Popen(  # noqa: S603 - the same command
            [word for word in sys.orig_argv if word not in _DETACH],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        told: dict[str, str] = {}
        while True:
            now = state.read(state_dir)
            if now is not None and now.supervisor.pid == child.pid:
                for status in now.processes:
                    if told.get(status.name) != status.health:
                        told[status.name] = status.health
                        waiting.note(
                            status.name, f"{status.health}: {status.detail}" if status.detail else status.health
                        )
                if now.ready:
                    break
            if child.poll() is not None:
                raise LocalError(f"{last_words(log)}\nThe supervisor's log: {log}")
            time.sleep(0.05)
            waiting.tick()
    for name, url in now.urls.items():
        stdout.print(f"{name:<12} {url}")
    stderr.print(f"Carebus is up as process {child.pid}; `carebus down` stops it.")
    child.returncode = 0  # It is meant to outlive this process, which is no reason for a warning.


def _parse_port(given: str) -> tuple[str, int]:
    name, _, port = given.partition("=")
    if name not in PORT_NAMES or not port.isdigit() or not 0 < int(port) < 65536:
        raise typer.BadParameter(f"{given!r} is not NAME=PORT", param_hint="--port")
    return name, int(port)
