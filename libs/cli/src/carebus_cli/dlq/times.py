"""Times as the on-call commands take and send them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

__all__ = ["parse_time", "rfc3339"]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_AGO = re.compile(r"([0-9]{1,6})([smhd])")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def parse_time(text: str, now: datetime) -> datetime:
    """`15m`, `2h`, `3d` before `now`, a date (its beginning, UTC), or an RFC 3339 time. Raises ValueError."""
    if ago := _AGO.fullmatch(text):
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is not None and _DATE.fullmatch(text):
        time = time.replace(tzinfo=UTC)
    if time is None or time.tzinfo is None:
        raise ValueError(
            "a number with s, m, h or d, such as 15m, or a time with its offset, such as 2026-01-31T08:15:00Z"
        )
    return time.astimezone(UTC)


def rfc3339(time: datetime) -> str:
    """With milliseconds, as the store has them, rounded down."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
