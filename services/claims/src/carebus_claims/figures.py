"""An organization's figures as the dashboard shows them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any, Final

from bson import Decimal128

from carebus_claims.claim import Status

__all__ = ["AGES", "dashboard"]

# Whole days since a claim's creation, both included; None: and older.
AGES: Final[tuple[tuple[int, int | None], ...]] = ((0, 7), (8, 30), (31, 60), (61, 90), (91, None))


def dashboard(seq: int, figures: Mapping[str, Any], today: date, *, only: str | None = None) -> dict[str, Any]:
    """Counts and sums by status, open claims by age, open claims by processor; `only`: that processor's workload."""
    workload = [
        {"processorId": processor, "open": int(number)}
        for processor, number in sorted(figures.get("workload", {}).items())
        if number and only in (None, processor)
    ]
    if only is not None:
        return {"asOf": seq, "statuses": [], "ageing": [], "workload": workload}
    statuses = figures.get("statuses", {})
    return {
        "asOf": seq,
        "statuses": [_of_status(str(status), statuses.get(str(status), {})) for status in Status],
        "ageing": _ageing(figures.get("open", {}), today),
        "workload": workload,
    }


def _of_status(status: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    total, paid = (_money(numbers.get(name)) for name in ("total", "paid"))
    return {"status": status, "count": int(numbers.get("count", 0)), "total": total, "paid": paid}


def _money(sum_of: Decimal128 | None) -> str:
    return "0.00" if sum_of is None else f"{sum_of.to_decimal():.2f}"


def _ageing(days: Mapping[str, Mapping[str, int]], today: date) -> list[dict[str, Any]]:
    counts = dict.fromkeys(AGES, 0)
    for day, by_status in days.items():
        # A clock that runs ahead elsewhere makes a claim of tomorrow; it is new.
        age_in_days = max(0, (today - date.fromisoformat(day)).days)
        age = next(age for age in AGES if age[1] is None or age_in_days <= age[1])
        counts[age] += sum(by_status.values())
    return [{"fromDays": first, "toDays": last, "count": count} for (first, last), count in counts.items()]
