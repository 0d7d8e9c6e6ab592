"""What may go wrong with the embedded stack; every message says what to do next.

LocalError
├── StartFailed       a part or service did not come up: which, why, its last log lines, where its log is
├── PortTaken         a configured port is in use
├── StateDirBusy      another supervisor runs on this state directory
└── NotRunning        nothing runs on this state directory
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["LocalError", "NotRunning", "PortTaken", "StartFailed", "StateDirBusy"]


class LocalError(Exception):
    """A failure of the embedded stack, told so that a person can act on it."""


class StartFailed(LocalError):
    """`name` did not become healthy: `why`, the last lines it logged, and the `log` that holds the rest."""

    def __init__(self, name: str, why: str, *, log: Path | None = None, last_lines: str = "") -> None:
        message = f"{name} did not start: {why}"
        if last_lines:
            message += "\nIts last words:\n" + "\n".join(f"    {line}" for line in last_lines.splitlines())
        if log is not None:
            message += f"\nIts log: {log}"
        super().__init__(message)
        self.name = name
        self.why = why
        self.log = log
        self.last_lines = last_lines


class PortTaken(LocalError):
    """A port that was configured, not merely preferred, is in use by another program."""

    def __init__(self, name: str, port: int) -> None:
        super().__init__(
            f"{name} is configured for port {port}, which is taken. See who has it with `ss -ltnp sport = :{port}`, "
            "or leave the port out and a free one is chosen."
        )
        self.name = name
        self.port = port


class StateDirBusy(LocalError):
    """A supervisor already runs on the state directory; `pid` is its process, if it has written it."""

    def __init__(self, state_dir: Path, pid: int | None) -> None:
        owner = f"process {pid}" if pid is not None else "another process"
        super().__init__(
            f"{owner} already runs Carebus on {state_dir}. Stop it with `carebus down`, "
            "or choose another directory with `--state-dir`."
        )
        self.state_dir = state_dir
        self.pid = pid


class NotRunning(LocalError):
    """No supervisor runs on the state directory."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(f"Carebus does not run on {state_dir}. Start it with `carebus up`.")
        self.state_dir = state_dir
