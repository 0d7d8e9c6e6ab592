"""One log file per child: `logs/NAME.log`, the three before it kept as `.1` to `.3`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["last_lines", "log_path", "rotate"]

_KEPT = 3


def log_path(state_dir: Path, name: str) -> Path:
    return state_dir / "logs" / f"{name}.log"


def rotate(log: Path) -> None:
    """Put an earlier run's log aside, so that a log tells of one run; restarts within a run append to it."""
    if not log.exists() or log.stat().st_size == 0:
        return
    for age in range(_KEPT, 1, -1):
        older = log.with_name(f"{log.name}.{age - 1}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{age}"))
    log.replace(log.with_name(f"{log.name}.1"))


def last_lines(log: Path, count: int = 15, *, since: int = 0, limit: int = 16 * 1024) -> str:
    """The last lines that say something, written after byte `since`, at most `limit` bytes of them."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(since, end - limit))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])
