"""Query strings, strictly."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

__all__ = ["Limit", "QueryModel", "check_query"]


class QueryModel(BaseModel):
    """Base of query models, used as `Annotated[Model, Query()]`: camelCase names, unknown parameters refused."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=False, frozen=True, extra="forbid")


def _digits(value: Any) -> Any:
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise ValueError("must be a whole number in decimal digits")
    return value


Limit = Annotated[int, BeforeValidator(_digits), Field(ge=1, le=200)]


def check_query(query_string: bytes, allowed: Collection[str] | None = None) -> dict[str, str]:
    """The parameters. Raises InvalidRequest naming every repeated, undecodable or (with `allowed`) unknown one."""
    raise NotImplementedError
