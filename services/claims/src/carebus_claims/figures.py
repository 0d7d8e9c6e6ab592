"""An organization's figures as the dashboard shows them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any, Final

from carebus_claims.claim import Status
from carebus_claims.figures_delta import flat

__all__ = ["AGES", "dashboard"]

# Whole days since a claim's creation, both included; None: and older.
AGES: Final[tuple[tuple[int, int | None], ...]] = ((0, 7), (8, 30), (31, 60), (61, 90), (91, None))


def dashboard(seq: int, figures: Mapping[str, Any], today: date, *, only: str | None = None) -> dict[str, Any]:
    """Counts and sums by status, open claims by age, open claims by processor; `only`: that processor's workload."""
    numbers = flat(figures)
    workload = [
        {"processorId": path[1], "open": int(number)}
        for path, number in sorted(numbers.items())
        if path[0] == "workload" and only in (None, path[1])
    ]
    if only is not None:
        return {"asOf": seq, "statuses": [], "ageing": [], "workload": workload}
    return {
        "asOf": seq,
        "statuses": [_of_status(str(status), numbers) for status in Status],
        "ageing": _ageing(numbers, today),
        "workload": workload,
    }


def _of_status(status: str, numbers: Mapping[tuple[str, ...], Decimal]) -> dict[str, Any]:
    count, total, paid = (numbers.get(("statuses", status, name), Decimal(0)) for name in ("count", "total", "paid"))
    return {"status": status, "count": int(count), "total": f"{total:.2f}", "paid": f"{paid:.2f}"}


def _ageing(numbers: Mapping[tuple[str, ...], Decimal], today: date) -> list[dict[str, Any]]:
    counts = dict.fromkeys(AGES, 0)
    for path, number in numbers.items():
        if path[0] == "open":
            # A clock that runs ahead elsewhere makes a claim of tomorrow; it is new.
            days = max(0, (today - date.fromisoformat(path[1])).days)
            age = next(age for age in AGES if age[1] is None or days <= age[1])
            counts[age] += int(number)
    return [{"fromDays": first, "toDays": last, "count": count} for (first, last), count in counts.items()]
