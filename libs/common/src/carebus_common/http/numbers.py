"""Numbers in JSON bodies, as JSON Schema reads them."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BeforeValidator

__all__ = ["WHOLE"]


def _whole(value: Any) -> Any:
    """`5` and `5.0` are one number to JSON; text and `true` are none, though pydantic alone would take them."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool | str):
        raise ValueError("a whole number")  # noqa: TRY004 - pydantic takes a ValueError
    return value


# Behind the bounds, which pydantic else leaves out of the document: `Annotated[int, Field(ge=1), WHOLE]`.
WHOLE: Final = BeforeValidator(_whole)
