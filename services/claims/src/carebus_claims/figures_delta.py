"""An organization's figures as numbers by their paths, so that they can be compared, added and taken apart. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

from bson import Decimal128

__all__ = ["Numbers", "added", "flat", "nested", "of_claim"]

# `("statuses", "pending", "total")` -> 12.50, `("open", "2026-11-25", "pending")` -> 3, `("workload", "u-7")` -> 2.
Numbers = dict[tuple[str, ...], Decimal]

_OPEN: Final = frozenset({"submitted", "under_review", "pending"})
_MONEY: Final = frozenset({"total", "paid"})


def of_claim(claim: Mapping[str, Any]) -> Numbers:
    """What one claim, as the store has it, adds to the figures."""
    status, one = claim["status"], Decimal(1)
    found: Numbers = {
        ("statuses", status, "count"): one,
        ("statuses", status, "total"): _decimal(claim["total"]),
        ("statuses", status, "paid"): _decimal(claim["paid"]),
    }
    if status in _OPEN:
        found["open", f"{claim['createdAt']:%Y-%m-%d}", status] = one
        if processor := claim.get("assignedProcessorId"):
            found["workload", processor] = one
    return found


def added(numbers: Numbers, more: Mapping[tuple[str, ...], Decimal], sign: int = 1) -> Numbers:
    """Both together, or the one without the other; without what comes to nothing."""
    found = dict(numbers)
    for path, number in more.items():
        found[path] = found.get(path, Decimal(0)) + sign * number
    return {path: number for path, number in found.items() if number}


def flat(figures: Mapping[str, Any] | None) -> Numbers:
    """The numbers of a head's figures, without zeros; what is no number is left out."""
    return {path: number for path, number in _flat((), figures or {}) if number}


def nested(numbers: Numbers) -> dict[str, Any]:
    """A head's figures: sums as Decimal128, counts as int."""
    made: dict[str, Any] = {"statuses": {}, "open": {}, "workload": {}}
    for path, number in sorted(numbers.items()):
        node = made
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = Decimal128(number.quantize(Decimal("0.01"))) if _is_money(path) else int(number)
    for status in made["statuses"].values():
        for name in ("total", "paid"):
            status.setdefault(name, Decimal128("0.00"))
        status.setdefault("count", 0)
    return made


def _flat(path: tuple[str, ...], node: Any) -> Iterable[tuple[tuple[str, ...], Decimal]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _flat((*path, name), value)
    elif isinstance(node, int | float | Decimal | Decimal128) and not isinstance(node, bool):
        yield path, _decimal(node)


def _decimal(value: Any) -> Decimal:
    return value.to_decimal() if isinstance(value, Decimal128) else Decimal(str(value))


def _is_money(path: tuple[str, ...]) -> bool:
    return path[0] == "statuses" and path[-1] in _MONEY
