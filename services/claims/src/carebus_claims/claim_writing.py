"""How a request that writes is answered: its version, its `Idempotency-Key`, its ETag."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any, Final

import msgspec
from fastapi import Request as HttpRequest
from fastapi import Response

from carebus_claims.claim_service import ClaimService, Request
from carebus_claims.requests import Answer
from carebus_common.auth import Caller
from carebus_common.errors import InvalidRequest
from carebus_common.http import request_id_of
from carebus_common.http.idempotency_key import KEY_PATTERN, parse_key

__all__ = ["BULK_HEADERS", "WRITE_HEADERS", "once", "version_of"]

_ETAG: Final = re.compile(r'"([1-9]\d{0,9})"')

_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A repetition with the same key and content gets the first answer, for a day.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": KEY_PATTERN},
}
_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "The ETag of what was read; 409 if the claim has changed since.",
    "schema": {"type": "string", "pattern": '^"[1-9][0-9]{0,9}"$'},
}
# For the OpenAPI document of a route that writes one claim.
WRITE_HEADERS: Final[dict[str, Any]] = {"parameters": [_KEY, _IF_MATCH]}
BULK_HEADERS: Final[dict[str, Any]] = {"parameters": [_KEY]}


class _Versioned(msgspec.Struct):
    version: int | None = None
    claimId: str | None = None  # noqa: N815


class _Envelope(msgspec.Struct):
    data: _Versioned


def version_of(http: HttpRequest, body_version: int | None, *, required: bool = False) -> int | None:
    """The version that the caller read, from If-Match or from the body. Raises InvalidRequest."""
    values = http.headers.getlist("if-match")
    if not values:
        if body_version is None and required:
            raise _problem("version", "the version that was read, here or as If-Match")
        return body_version
    match = _ETAG.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        raise _problem("if-match", 'one ETag, such as "3"')
    version = int(match[1])
    if body_version is not None and body_version != version:
        raise _problem("version", "the same as If-Match")
    return version


async def once(
    service: ClaimService,
    http: HttpRequest,
    caller: Caller,
    route: str,
    run: Callable[[Request], Awaitable[tuple[int, bytes]]],
) -> Response:
    """Run the request, or repeat the answer that its `Idempotency-Key` got before.

    Raises InvalidRequest for a malformed key, InProgress and KeyReused, and what `run` raises.
    """
    keys = http.headers.getlist("idempotency-key")
    if len(keys) > 1:
        raise _problem("idempotency-key", "at most one")
    key = parse_key(keys[0].encode("latin-1")) if keys else None
    request_id = request_id_of(http.scope)
    if key is None:
        return _response(*await run(Request(route, caller, request_id)))
    requests = service.tenant(caller).requests
    content = (http.method, http.url.path, http.headers.get("if-match", ""), (await http.body()).hex())
    fingerprint = sha256(msgspec.json.encode(content)).hexdigest()
    known = await requests.begin(caller.subject, key, fingerprint)
    if known is not None:
        response = _response(known.status, known.body)
        response.headers["Idempotency-Replayed"] = "true"
        return response
    try:
        kept = Request(route, caller, request_id, lambda status, body: Answer(caller.subject, key, status, body))
        return _response(*await run(kept))
    except BaseException:
        await requests.forget(caller.subject, key)
        raise


def _response(status: int, body: bytes) -> Response:
    response = Response(body, status, media_type="application/json")
    data = msgspec.json.decode(body, type=_Envelope).data
    if data.version is not None:
        response.headers["ETag"] = f'"{data.version}"'
    if status == 201:
        response.headers["Location"] = f"/claims/{data.claimId}"
    return response


def _problem(path: str, rule: str) -> InvalidRequest:
    return InvalidRequest("The request breaks a rule.", details=[{"path": path, "rule": rule}])
