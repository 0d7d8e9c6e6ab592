"""What a supervisor runs: a command, its environment, where it answers and how to ask it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

__all__ = ["Check", "Kind", "Program"]

Kind = Literal["part", "service"]

# Returns when the program answers as it should; raises anything, with the reason as its text, when it does not.
Check = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Program:
    """One child process. `env` is added to the supervisor's own environment."""

    name: str
    kind: Kind
    command: Sequence[str]
    url: str
    check: Check
    env: Mapping[str, str] = field(default_factory=dict)
    # From the start of the process to its first passed check.
    start_deadline: timedelta = timedelta(seconds=60)
    # From SIGTERM to SIGKILL.
    stop_deadline: timedelta = timedelta(seconds=10)
