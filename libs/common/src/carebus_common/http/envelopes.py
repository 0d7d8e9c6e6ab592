"""The two shapes of every answer, and the one place where errors become responses.

{"data": …}                                      one thing
{"data": […], "page": {"next": cursor | null}}   a list
{"error": {"code", "message", "details": [{"path", "rule"}], "requestId"}}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Send

from carebus_common.errors import CarebusError

__all__ = [
    "Data",
    "Error",
    "ErrorBody",
    "Header",
    "Internal",
    "Page",
    "PageInfo",
    "Problem",
    "Response",
    "error_response",
    "json_response",
    "path_of",
    "problems_of",
    "refusal",
    "send_response",
]

T = TypeVar("T")

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_.\[\]$-]{1,64}")
# Pydantic's messages that repeat some of the input, or the text of an error that may.
_QUOTING: Final = frozenset(
    {
        "date_from_datetime_parsing",
        "get_attribute_error",
        "json_invalid",
        "union_tag_invalid",
        "url_parsing",
        "url_syntax_violation",
        "uuid_parsing",
    }
)

Header: TypeAlias = tuple[bytes, bytes]
Response: TypeAlias = tuple[int, list[Header], bytes]

# Answers carry patient data: nobody on the way may keep or guess at them.
PROTECTIVE_HEADERS: Final[tuple[Header, ...]] = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)


class Data(BaseModel, Generic[T]):
    """One thing: `{"data": …}`."""

    data: T


class PageInfo(BaseModel):
    """Where the list goes on: pass `next` as `cursor`; null at the end."""

    next: str | None = None


class Page(BaseModel, Generic[T]):
    """A list: `{"data": […], "page": {"next": …}}`."""

    data: Sequence[T]
    page: PageInfo = PageInfo()


class Problem(BaseModel):
    """One offending field: where it is, and the rule it breaks; never its value."""

    model_config = ConfigDict(extra="allow")

    path: str
    rule: str


class ErrorBody(BaseModel):
    code: str = Field(description="Stable slug, safe to switch on.")
    message: str
    details: list[Problem] = Field(default_factory=list)
    request_id: str = Field(alias="requestId")


class Error(BaseModel):
    """Any refusal: `{"error": …}`."""

    error: ErrorBody


class Internal(CarebusError):
    """A bug of ours: says nothing of itself, the log has it under the request id."""

    status = 500
    code = "internal"

    def __init__(self) -> None:
        super().__init__("Something went wrong on our side; quote the request id when you report it.")


def error_response(error: CarebusError, request_id: str) -> Response:
    """Status, headers and body of a refusal, ready to send."""
    body = msgspec.json.encode(
        {
            "error": {
                "code": error.code,
                "message": error.message,
                "details": error.details,
                "requestId": request_id,
            }
        }
    )
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in error.headers.items()]
    return json_response(error.status, body, request_id, headers)


def json_response(status: int, body: bytes, request_id: str, headers: Iterable[Header] = ()) -> Response:
    """An answer with a ready-made JSON body, its request id and the protective headers."""
    return (
        status,
        [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode("latin-1")),
            *PROTECTIVE_HEADERS,
            *headers,
        ],
        body,
    )


async def send_response(send: Send, response: Response) -> None:
    """Send a whole answer; the server drops the body of an answer to HEAD."""
    status, headers, body = response
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def refusal(status: int, headers: Mapping[str, str] | None = None) -> CarebusError:
    """A refusal for a status that came without an error of the tree: code and message are the standard phrase."""
    phrase = HTTPStatus(status).phrase
    kind = type("Refusal", (CarebusError,), {"status": status, "code": phrase.lower().replace(" ", "-")})
    error: CarebusError = kind(f"{phrase}.", headers=headers)
    return error


def problems_of(errors: Iterable[Mapping[str, Any]], within: tuple[str | int, ...] = ()) -> list[dict[str, str]]:
    """Details for pydantic's errors, `{path, rule}` each and never a value; `within` is where the model stands.

    FastAPI's errors begin with their place (`body`, `query`, …); for a model validated by hand say `("body",)`.
    """
    return [{"path": path_of((*within, *error["loc"])), "rule": _rule_of(error)} for error in errors]


def path_of(location: tuple[str | int, ...]) -> str:
    """A location as text: `$.items[3].patientId` in a body, the bare name of a parameter.

    A name that is no plain identifier is the sender's own text and shows as `?`.
    """
    path = ""
    for part in location[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part if _PLAIN_NAME.fullmatch(part) else '?'}"
    return f"${path}" if location[0] == "body" else path.removeprefix(".")


def _rule_of(error: Mapping[str, Any]) -> str:
    """Pydantic's sentence where it speaks of the rule alone; where it may quote the value, the rule's name."""
    kind: str = error["type"]
    if kind in ("value_error", "assertion_error"):
        return str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "extra_forbidden":
        return "unknown name"
    if kind in _QUOTING:
        return kind.replace("_", " ")
    return str(error["msg"])
