"""Scalars that pass as the text they are: nothing here turns money or a time into a number."""

from __future__ import annotations

import re
from typing import Any, Final, NewType

import strawberry
from strawberry.types.scalar import ScalarDefinition

__all__ = ["SCALARS", "Date", "DateTime", "Json", "Money"]

Money = NewType("Money", str)
DateTime = NewType("DateTime", str)
Date = NewType("Date", str)
Json = NewType("Json", object)

_MONEY: Final = re.compile(r"\d{1,10}(?:\.\d{1,2})?", re.ASCII)


def _money(value: Any) -> str:
    """Raises ValueError for a number too: it may have lost cents on its way here."""
    if not (isinstance(value, str) and _MONEY.fullmatch(value)):
        raise ValueError('an amount in quotes with at most two decimals, such as "136.80"')
    return value


def _text(value: Any) -> str:
    if not (isinstance(value, str) and len(value) <= 64):
        raise ValueError("a text in quotes")
    return value


SCALARS: Final[dict[object, ScalarDefinition]] = {
    Money: strawberry.scalar(
        name="Money",
        description='A decimal amount as text, such as "136.80": never a number, which would be a float to many.',
        serialize=str,
        parse_value=_money,
    ),
    DateTime: strawberry.scalar(name="DateTime", description="RFC 3339 with offset.", serialize=str, parse_value=_text),
    Date: strawberry.scalar(name="Date", description="YYYY-MM-DD.", serialize=str, parse_value=_text),
    Json: strawberry.scalar(name="JSON", description="Any JSON; amounts of claims in it are text."),
}
