from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Decimal128, Int64

from carebus_claims.content import ContentHash, compare, digest


async def rows(*given: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    for row in given:
        yield row


def test_the_order_of_names_is_no_content_and_the_type_of_a_value_is() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": [{"e": 1, "f": 2}]}}) == digest(
        {"b": {"d": [{"f": 2, "e": 1}], "c": 2}, "a": 1}
    )
    values: list[Any] = [1, 1.0, "1", True, None, Decimal128("1"), Decimal128("1.0"), Int64(1), [1], datetime.now(UTC)]
    assert len({digest({"a": value}) for value in values}) == len(values)


def test_a_hash_is_the_same_in_any_order_and_another_for_a_row_that_comes_twice() -> None:
    def of(*given: int) -> tuple[int, str]:
        made = ContentHash()
        for one in given:
            made.add(digest({"a": one}))
        return made.rows, str(made)

    assert of(1, 2, 3) == of(3, 1, 2)
    assert of(1, 2) != of(1, 2, 2)
    assert of() == (0, "0" * 32)


@pytest.mark.parametrize("shift", [0, 1])
async def test_rows_are_compared_side_by_side(shift: int) -> None:
    same = [{"_id": f"o/{n}", "a": n} for n in range(2, 9)]
    one = [{"_id": "o/1", "a": 1}][shift:] + same
    other = [*same[:3], {"_id": "o/5", "a": 0}, *same[4:], {"_id": "o/9", "a": 9}]
    made = await compare(rows(*one), rows(*other))
    assert made.surplus == ["o/1"][shift:]
    assert (made.different, made.missing) == (["o/5"], ["o/9"])
    assert made.ids == ["o/9", "o/5", *["o/1"][shift:]]
    assert (made.found.rows, made.expected.rows) == (len(one), len(other))
    assert str(made.found) != str(made.expected)


async def test_what_is_the_same_has_the_same_hash_and_no_difference() -> None:
    made = await compare(rows({"_id": "1"}, {"_id": "2"}), rows({"_id": "1"}, {"_id": "2"}))
    assert (made.ids, str(made.found)) == ([], str(made.expected))
    assert (await compare(rows(), rows())).ids == []
