"""When a failed event is tried again: exponential backoff with jitter, so many retries, an overall deadline. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

__all__ = ["RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a subscription retries transient failures of its handler.

    The n-th retry comes `base * factor^(n-1)` after the failure before it, at most `longest`, shortened by up to
    `jitter` of itself so that many patients that failed together do not return together. After `retries` retries,
    or once the next one would come later than `deadline` after the first failure, the event is a dead letter.
    """

    base: timedelta = timedelta(seconds=2)
    retries: int = 3
    factor: float = 2.0
    longest: timedelta = timedelta(minutes=5)
    jitter: float = 0.2
    deadline: timedelta = timedelta(minutes=15)

    def next_try(
        self, failures: int, give_up_at: datetime, now: datetime, *, draw: Callable[[], float] = random.random
    ) -> datetime | None:
        """When to try again after failure number `failures` (from 1); None: no more. `draw` gives [0, 1)."""
        if failures > self.retries:
            return None
        seconds = min(self.base.total_seconds() * self.factor ** (failures - 1), self.longest.total_seconds())
        due = now + timedelta(seconds=seconds * (1 - self.jitter * draw()))
        return due if due <= give_up_at else None
