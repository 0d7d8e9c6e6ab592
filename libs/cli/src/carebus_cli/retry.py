"""How long to wait before asking again, and when to stop: pure functions of what the server said."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

__all__ = ["RETRIED_STATUSES", "RetryPolicy", "parse_retry_after"]

# The answers after which the same request may succeed: too many requests, and a part that is away.
RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """A request is tried again while less than `give_up_after` has passed since its first try."""

    give_up_after: timedelta = timedelta(seconds=60)
    first_wait: timedelta = timedelta(milliseconds=200)
    longest_wait: timedelta = timedelta(seconds=5)

    def wait(self, attempt: int, elapsed: float, retry_after: float | None) -> float | None:
        """Seconds to wait after try number `attempt` (from 1) failed, `elapsed` seconds since the first began.

        The server's Retry-After is honoured in full, with up to a tenth on top so that waiting clients do not
        return all at once; without one the wait doubles. `None`: give up, the wait would outlast the limit.
        """
        if retry_after is not None:
            seconds = retry_after * (1 + random.random() / 10)  # noqa: S311
        else:
            doubled = min(self.first_wait.total_seconds() * 2 ** (attempt - 1), self.longest_wait.total_seconds())
            seconds = doubled * (0.5 + random.random() / 2)  # noqa: S311
        return seconds if elapsed + seconds <= self.give_up_after.total_seconds() else None


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds from a Retry-After header, either form of RFC 9110, 10.2.3; `None` if absent or neither form."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
