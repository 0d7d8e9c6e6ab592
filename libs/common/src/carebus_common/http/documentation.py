"""The OpenAPI document of an app: FastAPI's own, with every refusal by its status, so that a document is complete."""

from __future__ import annotations

import copy
from typing import Any, Final

from fastapi import FastAPI

from carebus_common.http.envelopes import Error

__all__ = ["openapi", "refusal_response", "refusals"]

_RETRY_AFTER: Final = {"Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer"}}}
_CHALLENGE: Final = {
    "WWW-Authenticate": {"description": "`Bearer`.", "required": True, "schema": {"type": "string"}},
}

_MEANINGS: Final[dict[int, str]] = {
    400: "Malformed, or a field breaks its rule: the details name each.",
    401: "No valid token.",
    403: "The token lacks the role.",
    404: "There is none, or it is another organization's.",
    408: "The body stalled.",
    409: "It has changed meanwhile, exists already, or is still in progress.",
    413: "Too large.",
    415: "Another media type, none, or another charset than UTF-8.",
    422: "Well formed but not allowed.",
    431: "Headers too large.",
    502: "The service behind answered nonsense.",
    503: "A part is away: ask again.",
    504: "The service behind did not answer in time.",
}
_HEADERS: Final[dict[int, dict[str, Any]]] = {401: _CHALLENGE, 503: _RETRY_AFTER}

# What the app itself may answer, whichever route it is.
_ALWAYS: Final = (400, 401, 403, 431, 503)
_WITH_BODY: Final = (408, 413, 415)


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's own refusals, for its `responses=`; those that every route may answer need no mention."""
    return {status: {"model": Error, "description": _MEANINGS[status]} for status in statuses}


def refusal_response(status: int) -> dict[str, Any]:
    """A refusal as a response object of the document."""
    schema = {"$ref": f"#/components/schemas/{Error.__name__}"}
    response = {"description": _MEANINGS[status], "content": {"application/json": {"schema": schema}}}
    return {**response, "headers": _HEADERS[status]} if status in _HEADERS else response


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document, for the generated docs; no app serves it."""
    document = copy.deepcopy(app.openapi())
    for item in document["paths"].values():
        for operation in item.values():
            own = operation["responses"]
            del own["default"]
            every = {str(status): refusal_response(status) for status in _statuses(operation)} | own
            operation["responses"] = dict(sorted(every.items()))
    return document


def _statuses(operation: dict[str, Any]) -> tuple[int, ...]:
    statuses: tuple[int, ...] = _ALWAYS
    if "requestBody" in operation:
        statuses += _WITH_BODY
    # A list's cursor of another organization leads nowhere either.
    if any(one["in"] == "path" or one["name"] == "cursor" for one in operation.get("parameters", [])):
        statuses += (404,)
    return statuses
