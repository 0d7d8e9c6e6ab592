"""Whether two collections have the same content, whatever the order of their rows. Pure."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import bson

__all__ = ["ContentHash", "Difference", "compare", "digest"]

_BITS: Final = 128


def digest(row: Mapping[str, Any]) -> int:
    """128 bits of a row's content; names in any order, values by their BSON type."""
    return int.from_bytes(blake2b(bson.encode({"": _sorted(row)}), digest_size=_BITS // 8).digest())


@dataclass(slots=True)
class ContentHash:
    """The sum of the rows' digests, so that it is the same in any order and can be carried on."""

    rows: int = 0
    total: int = 0

    def add(self, one: int) -> None:
        self.rows += 1
        self.total = (self.total + one) % 2**_BITS

    def __str__(self) -> str:
        return f"{self.total:032x}"


@dataclass(slots=True)
class Difference:
    """What two collections have and have not in common, by the rows' `_id`."""

    found: ContentHash = field(default_factory=ContentHash)
    expected: ContentHash = field(default_factory=ContentHash)
    missing: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return [*self.missing, *self.different, *self.surplus]


async def compare(found: AsyncIterator[Mapping[str, Any]], expected: AsyncIterator[Mapping[str, Any]]) -> Difference:
    """Read both, which come in the order of `_id`, side by side; nothing is held but what differs."""
    made = Difference()
    one, other = await anext(found, None), await anext(expected, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one["_id"] < other["_id"]):
            assert one is not None
            made.found.add(digest(one))
            made.surplus.append(one["_id"])
            one = await anext(found, None)
        elif one is None or other["_id"] < one["_id"]:
            made.expected.add(digest(other))
            made.missing.append(other["_id"])
            other = await anext(expected, None)
        else:
            is_, should_be = digest(one), digest(other)
            made.found.add(is_)
            made.expected.add(should_be)
            if is_ != should_be:
                made.different.append(one["_id"])
            one, other = await anext(found, None), await anext(expected, None)
    return made


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _sorted(value[name]) for name in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value
