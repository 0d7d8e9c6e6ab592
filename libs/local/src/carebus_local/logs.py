"""One log file per child: `logs/NAME.log`, the three before it kept as `.1` to `.3`."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["last_lines", "last_words", "log_path", "rotate"]

_JVM_FRAME = re.compile(r"\s+(at |\.\.\. \d+ more)")
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


def last_lines(log: Path, count: int, *, limit: int = 8 * 1024 * 1024) -> str:
    """The last lines that say something, from the last `limit` bytes at most."""
    return "\n".join(_lines(log, 0, limit)[-count:])


def last_words(log: Path, *, since: int = 0) -> str:
    """What a process that failed said last, of what was written after byte `since`; without a JVM's stack frames,
    which would push out the message above them."""
    return "\n".join([line for line in _lines(log, since, 64 * 1024) if not _JVM_FRAME.match(line)][-15:])


def _lines(log: Path, since: int, limit: int) -> list[str]:
    try:
        with log.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(since, end - limit))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]
