"""Errors as GraphQL shows them: a message, where in the query, and `extensions.code`, as REST has it.

What the GraphQL library says may quote the query, and a query may hold what only a patient's record should. Its
messages pass only where they are of a known form, and of what they quote only the schema's own names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from graphql import GraphQLError

from carebus_common.errors import CarebusError, InvalidRequest
from carebus_common.http.envelopes import Internal
from carebus_common.logging import get_logger

__all__ = ["Wording", "shown"]

log = get_logger(__name__)

_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# What graphql-core says of a query that does not fit the schema, with `_` for each thing it quotes.
_FORMS: Final = frozenset(
    {
        "Cannot query field _ on type _.",
        "Unknown argument _ on field _.",
        "Unknown type _.",
        "Unknown fragment _.",
        "Unknown directive _.",
        "Field _ must not have a selection since type _ has no subfields.",
        "Field _ of type _ must have a selection of subfields.",
        "Argument _ of required type _ was not provided.",
        "Field _ argument _ of type _ is required, but it was not provided.",
        "Fragment _ is never used.",
        "Variable _ is not defined.",
        "Variable _ is not defined by operation _.",
        "Variable _ is never used.",
        "Variable _ is never used in operation _.",
        "Variable _ of required type _ was not provided.",
        "Variable _ of type _ used in position expecting type _.",
        "There can be only one argument named _.",
        "Maximum introspection depth exceeded",
    }
)
_MALFORMED: Final = "The query is not well formed."
_UNFIT: Final = "The query, or a variable, does not fit the schema."


class Wording:
    """What may be said of a query, given the names of the schema."""

    def __init__(self, schema: str) -> None:
        self._names = frozenset(_NAME.findall(schema))

    def of(self, message: str) -> str:
        """The library's message, without anything of the caller's."""
        if message.startswith("Syntax Error"):
            return _MALFORMED
        said = re.split(r" Did you mean", message, maxsplit=1)[0]
        if _QUOTED.sub("_", said) not in _FORMS:
            return _UNFIT
        return _QUOTED.sub(self._quote, said)

    def _quote(self, quoted: re.Match[str]) -> str:
        names = _NAME.findall(quoted[0])
        return quoted[0] if names and all(name in self._names for name in names) else "'…'"


def shown(errors: Iterable[GraphQLError | CarebusError], wording: Wording, request_id: str) -> list[dict[str, Any]]:
    """Errors as the response's `errors`; what nobody foresaw is logged, by its class, and said to be internal."""
    return [_shown(error, wording, request_id) for error in errors]


def _shown(error: GraphQLError | CarebusError, wording: Wording, request_id: str) -> dict[str, Any]:
    if isinstance(error, CarebusError):
        return {"message": error.message, "extensions": _extensions(error, request_id)}
    said: dict[str, Any] = {}
    cause = error.original_error
    if isinstance(cause, CarebusError):
        refused: CarebusError = cause
    elif cause is None or error.path is None:
        # It is about the query or its variables.
        refused = InvalidRequest(wording.of(error.message))
    else:
        log.error("graphql-failed", exc_info=cause)
        refused = Internal()
    said["message"] = refused.message
    if error.locations:
        said["locations"] = [{"line": place.line, "column": place.column} for place in error.locations]
    if error.path:
        said["path"] = error.path
    return said | {"extensions": _extensions(refused, request_id)}


def _extensions(error: CarebusError, request_id: str) -> Mapping[str, Any]:
    extensions: dict[str, Any] = {"code": error.code, "requestId": request_id}
    if error.details:
        extensions["details"] = error.details
    if "Retry-After" in error.headers:
        extensions["retryAfter"] = int(error.headers["Retry-After"])
    return extensions
