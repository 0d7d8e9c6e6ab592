"""Query strings, strictly: nothing unknown, nothing repeated, nothing that does not decode.

A route declares a `QueryModel` as `Annotated[HistoryQuery, Query()]`; FastAPI validates it and puts it into the
OpenAPI document. What FastAPI lets through is refused around it: `check_query` runs on every query string, and
`refuse_unknown_parameters` on every route.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Final

from fastapi.dependencies.models import Dependant
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.requests import Request

from carebus_common.errors import InvalidRequest
from carebus_common.http.envelopes import path_of
from carebus_common.http.paths import percent_decode

__all__ = ["MAX_LIMIT", "Limit", "QueryModel", "check_query", "refuse_unknown_parameters"]

MAX_LIMIT: Final = 200


class QueryModel(BaseModel):
    """Base of query models: camelCase names, unknown parameters refused."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=False, frozen=True, extra="forbid")


def _digits(value: Any) -> Any:
    """Let only plain decimal digits through: pydantic alone would also read `+5`, `5.0`, `1_0` and ` 5 `."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise ValueError("a whole number in decimal digits")
    return value


# How many entries a page holds: 1 to 200.
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT), BeforeValidator(_digits)]


def check_query(query_string: bytes, allowed: Collection[str] | None = None) -> dict[str, str]:
    """The parameters, decoded.

    Raises InvalidRequest naming every parameter that is repeated, does not decode as percent-encoded UTF-8, or
    (where `allowed` is given) is unknown.
    """
    values: dict[str, str] = {}
    problems: list[dict[str, str]] = []
    for number, pair in enumerate(query_string.decode("latin-1").split("&")):
        if not pair:
            continue
        raw_name, _, raw_value = pair.replace("+", " ").partition("=")
        try:
            name = _decode(raw_name)
        except ValueError as error:
            problems.append({"path": f"[{number}]", "rule": str(error)})
            continue
        path = path_of(("query", name))
        if name in values:
            problems.append({"path": path, "rule": "given once"})
        elif allowed is not None and name not in allowed:
            problems.append({"path": path, "rule": "unknown name"})
        try:
            values[name] = _decode(raw_value)
        except ValueError as error:
            problems.append({"path": path, "rule": str(error)})
    if problems:
        raise InvalidRequest("The query breaks a rule.", details=problems)
    return values


def _decode(text: str) -> str:
    if not text.isascii():
        raise ValueError("percent-encoded UTF-8")
    return percent_decode(text)


async def refuse_unknown_parameters(request: Request) -> None:
    """Raises InvalidRequest for parameters the route does not declare; every app depends on it."""
    if not request.scope["query_string"]:
        return
    names = _declared(request.scope["route"].dependant)
    if names is not None:
        check_query(request.scope["query_string"], names)


def _declared(dependant: Dependant) -> set[str] | None:
    """The names of a route's query parameters; None if a model of its own refuses unknown ones, with all else."""
    names: set[str] = set()
    for field in dependant.query_params:
        annotation = field.field_info.annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            names.add(field.alias)
        elif annotation.model_config.get("extra") == "forbid":
            return None
        else:
            names |= {inner.alias or name for name, inner in annotation.model_fields.items()}
    for inner_dependant in dependant.dependencies:
        inner_names = _declared(inner_dependant)
        if inner_names is None:
            return None
        names |= inner_names
    return names
