"""The state directory: who runs on it, and what it runs.

.carebus/
  lock          held (flock) by the supervisor for as long as it lives
  state.json    the supervisor, every part and service: name, pid, url, health, restarts
  ports.json    the ports of the last run, preferred by the next
  logs/         NAME.log per child, and supervisor.log if detached
  keys/         the development key and jwks.json
  kafka/ valkey/ secantusd-py/ …    the parts' data
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from carebus_local.errors import StateDirBusy
from carebus_local.identity import Identity, identify
from carebus_local.program import Kind

__all__ = ["Health", "State", "Status", "clean_up", "lock", "read", "write"]

Health = Literal["starting", "healthy", "unhealthy", "restarting", "stopped"]


@dataclass(frozen=True, slots=True)
class Status:
    """One part or service. `pid` is None where none runs, and for a part that was given by its URL.

    `detail` says why it is not healthy; `started` is the other half of the process's identity.
    """

    name: str
    kind: Kind
    url: str
    health: Health
    pid: int | None = None
    started: str | None = None
    restarts: int = 0
    detail: str | None = None
    log: str | None = None

    def identity(self) -> Identity | None:
        return Identity(self.pid, self.started) if self.pid is not None and self.started is not None else None


@dataclass(frozen=True, slots=True)
class State:
    """What `state.json` holds. `urls` names what a client needs: gateway, ingest, kafka, store, valkey, …"""

    supervisor: Identity
    ready: bool
    processes: tuple[Status, ...] = ()
    urls: dict[str, str] = field(default_factory=dict)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def lock(state_dir: Path) -> IO[str]:
    """Take the state directory until the file is closed or the process ends. Raises StateDirBusy."""
    state_dir.mkdir(parents=True, exist_ok=True)
    file = (state_dir / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        running = read(state_dir)
        raise StateDirBusy(state_dir, running.supervisor.pid if running else None) from None
    return file


def read(state_dir: Path) -> State | None:
    """The last written state, None if there is none or it is unreadable."""
    try:
        held: dict[str, Any] = json.loads((state_dir / "state.json").read_text())
        return State(
            supervisor=Identity(**held["supervisor"]),
            ready=held["ready"],
            processes=tuple(Status(**status) for status in held["processes"]),
            urls=held["urls"],
            started_at=held["started_at"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(state_dir: Path, state: State) -> None:
    """Replace the state; a reader sees the old one or the new one."""
    scratch = state_dir / "state.json.new"
    scratch.write_text(json.dumps(asdict(state), indent=2) + "\n")
    scratch.replace(state_dir / "state.json")


def clean_up(state_dir: Path, deadline_seconds: float = 10) -> list[Status]:
    """End what a supervisor that is gone left running, and tell what that was. Call with the lock held. Blocks.

    Only processes whose id and start time are those recorded are signalled.
    """
    stale = read(state_dir)
    left = [status for status in stale.processes if (it := status.identity()) and it.alive()] if stale else []
    # Services first: they write to the parts.
    for status in sorted(left, key=lambda status: status.kind == "part"):
        identity = status.identity()
        if identity is not None:
            identity.end(deadline_seconds)
    return left


def myself() -> Identity:
    """The running process."""
    identity = identify(os.getpid())
    if identity is None:
        raise RuntimeError("this process cannot see itself: is /proc mounted?")
    return identity
