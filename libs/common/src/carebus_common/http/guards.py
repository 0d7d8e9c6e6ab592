"""What every request passes before any handler: functions, so that a raw ASGI route shares them with the app."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from carebus_common.errors import HeadersTooLarge, InvalidRequest, PayloadTooLarge, RequestTimeout, UnsupportedMediaType
from carebus_common.http.envelopes import Header

__all__ = [
    "ClientDisconnect",
    "check_content_length",
    "check_headers",
    "content_type_of",
    "has_body",
    "header",
    "read_body",
    "request_id_of",
    "require_content_type",
]

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_KEY: Final = "carebus.request_id"


def request_id_of(scope: Scope) -> str:
    """The request's id: the caller's `X-Request-Id` if it is one sane value, else a new one; the same on every call."""
    known: str | None = scope.get(_KEY)
    if known is not None:
        return known
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    request_id = given[0].decode() if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]) else os.urandom(16).hex()
    scope[_KEY] = request_id
    return request_id


def header(headers: Iterable[Header], name: bytes) -> bytes | None:
    """The one value of a header (lower-case name); None if absent. Raises InvalidRequest if it is repeated."""
    found: bytes | None = None
    for key, value in headers:
        if key == name:
            if found is not None:
                raise InvalidRequest("A header is repeated.", details=[{"path": name.decode(), "rule": "given once"}])
            found = value
    return found


def check_headers(scope: Scope, limit: int) -> None:
    """Raises HeadersTooLarge if target, header names and values together are over `limit` bytes."""
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    for name, value in scope["headers"]:
        size += len(name) + len(value) + 4  # ": " and CRLF, as they came over the wire
    if size > limit:
        raise HeadersTooLarge(f"The request line and headers together exceed {limit} bytes.")


def has_body(scope: Scope) -> bool:
    """Whether the headers announce a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def check_content_length(scope: Scope, limit: int) -> None:
    """Raises PayloadTooLarge if the announced length is over `limit` bytes, before anything of the body is read."""
    length = header(scope["headers"], b"content-length")
    if length is None:
        return
    if not length.isdigit():
        raise InvalidRequest("Malformed header.", details=[{"path": "content-length", "rule": "decimal digits"}])
    if len(length) > 18 or int(length) > limit:
        raise _too_large(limit)


async def read_body(receive: Receive, limit: int, timeout: timedelta) -> bytes:  # noqa: ASYNC109 - part of the contract
    """The whole body.

    Raises PayloadTooLarge over `limit` bytes (also chunked), RequestTimeout if the body is not complete within
    `timeout`, ClientDisconnect if the caller went away.
    """
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            message = await _body_part(receive)
            first: bytes = message.get("body", b"")
            if not message.get("more_body", False):
                if len(first) > limit:
                    raise _too_large(limit)
                return first
            body = bytearray(first)
            while message.get("more_body", False):
                if len(body) > limit:
                    raise _too_large(limit)
                message = await _body_part(receive)
                body += message.get("body", b"")
    except TimeoutError:
        raise RequestTimeout(f"The body was not complete within {timeout.total_seconds():g} seconds.") from None
    if len(body) > limit:
        raise _too_large(limit)
    return bytes(body)


async def _body_part(receive: Receive) -> Any:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body exceeds {limit} bytes.")


def content_type_of(scope: Scope) -> str:
    """The media type in lower case without parameters; empty if there is none. Raises InvalidRequest if repeated."""
    value = header(scope["headers"], b"content-type") or b""
    return value.split(b";", 1)[0].strip().lower().decode("latin-1")


def require_content_type(scope: Scope, *allowed: str) -> str:
    """The media type, one of `allowed`. Raises UnsupportedMediaType for another, for none, and for other charsets."""
    value = (header(scope["headers"], b"content-type") or b"").decode("latin-1").lower()
    media_type, _, parameters = value.partition(";")
    media_type = media_type.strip()
    charset = next(
        (p.split("=", 1)[1].strip(' "') for p in parameters.split(";") if p.strip().startswith("charset=")), ""
    )
    if media_type not in allowed or charset not in ("", "utf-8", "utf8"):
        raise UnsupportedMediaType(f"Send {' or '.join(allowed)} in UTF-8.")
    return media_type
