"""The FastAPI app as every service builds it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from carebus_common import metrics
from carebus_common.auth import TokenVerifier
from carebus_common.errors import CarebusError, InvalidRequest, MethodNotAllowed, NotFound
from carebus_common.http.envelopes import (
    PROTECTIVE_HEADERS,
    Error,
    Internal,
    error_response,
    problems_of,
    refusal,
    send_response,
)
from carebus_common.http.guards import (
    check_content_length,
    check_headers,
    has_body,
    read_body,
    request_id_of,
    require_content_type,
)
from carebus_common.http.paths import raw_path_of
from carebus_common.http.query import check_query, refuse_unknown_parameters
from carebus_common.logging import get_logger
from carebus_common.settings import HttpSettings
from carebus_common.strict_json import parse_value

__all__ = ["create_app"]

_log = get_logger(__name__)


def create_app(
    *,
    title: str,
    version: str,
    settings: HttpSettings,
    verifier: TokenVerifier | None = None,
    description: str = "",
    lifespan: Lifespan[FastAPI] | None = None,
    media_types: Sequence[str] = ("application/json",),
) -> FastAPI:
    """An app with envelopes, request ids, limits and strict queries, to which a service adds its routes.

    Routes match the path as it was sent: an id in a path is `{patient_id:segment}`, which decodes it. Routes raise
    `CarebusError`s and return `Data` or `Page`. `verifier` becomes `app.state.verifier`, for `current_caller`. A body
    of another type than `media_types` is refused (415), and JSON has to be strict.
    """
    app = FastAPI(
        title=title,
        version=version,
        description=description,
        lifespan=lifespan,
        openapi_url=None,  # and without the document no /docs and /redoc
        redirect_slashes=False,
        # Its spans carry paths and exceptions as they are, and both may name a patient.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        dependencies=[Depends(_refuse_shadowed_paths), Depends(refuse_unknown_parameters)],
        # Puts `Error` into the document, and keeps FastAPI from describing a 422 of its own; see `documentation`.
        responses={"default": {"model": Error}},
    )
    app.state.verifier = verifier
    app.add_middleware(_Guard, settings=settings, media_types=tuple(media_types))
    app.add_exception_handler(CarebusError, _on_carebus_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    return app


class _Guard:
    """Around every request: its id, its limits, its raw path, and an answer in the envelope whatever happens."""

    def __init__(self, app: ASGIApp, settings: HttpSettings, media_types: tuple[str, ...]) -> None:
        self._app = app
        self._settings = settings
        self._media_types = media_types

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        began = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _with_standard_headers(message.get("headers", []), request_id)
            elif scope["method"] == "HEAD":
                message["body"] = b""
            await send(message)

        # HEAD is GET without the body: the routes need not know it.
        inner = dict(scope, method="GET") if scope["method"] == "HEAD" else dict(scope)
        with bound_contextvars(request_id=request_id):
            try:
                receive = await self._admit(inner, receive)
                await self._app(inner, receive, answer)
            except ClientDisconnect:
                pass
            except CarebusError as error:
                await send_response(answer, error_response(error, request_id))
            except Exception as error:
                _log.error("request-failed", exc_info=error)
                if not status:
                    await send_response(answer, error_response(Internal(), request_id))
            finally:
                route = getattr(inner.get("route"), "path_format", "unmatched")
                metrics.HTTP_REQUESTS.labels(route, inner["method"], str(status)).inc()
                metrics.HTTP_SECONDS.labels(route).observe(time.perf_counter() - began)

    async def _admit(self, scope: Scope, receive: Receive) -> Receive:
        """Check the limits, set the raw path, and read the body; what is returned replays it."""
        check_headers(scope, self._settings.max_header_bytes)
        scope["path"] = raw_path_of(scope)
        if scope["query_string"]:
            check_query(scope["query_string"])
        if not has_body(scope):
            return receive
        media_type = require_content_type(scope, *self._media_types)
        check_content_length(scope, self._settings.max_body_bytes)
        body = await read_body(receive, self._settings.max_body_bytes, self._settings.body_timeout)
        if media_type.endswith("json"):
            parse_value(body)  # FastAPI would accept duplicate keys, NaN and lone surrogates
        return _replayed(body, receive)


def _replayed(body: bytes, receive: Receive) -> Receive:
    unread = True

    async def replay() -> Message:
        nonlocal unread
        if unread:
            unread = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _with_standard_headers(headers: Any, request_id: str) -> list[tuple[bytes, bytes]]:
    present = {name for name, _ in headers}
    standard = ((b"x-request-id", request_id.encode()), *PROTECTIVE_HEADERS)
    return [*headers, *(pair for pair in standard if pair[0] not in present)]


def _respond(request: Request, error: CarebusError) -> Response:
    status, headers, body = error_response(error, request_id_of(request.scope))
    response = Response(body, status)
    response.raw_headers = headers
    return response


async def _on_carebus_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CarebusError)
    return _respond(request, error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _respond(request, InvalidRequest("The request breaks a rule.", details=problems_of(error.errors())))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What Starlette and FastAPI raise by themselves, as if the tree had it."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _respond(request, NotFound("There is nothing here."))
    if error.status_code == 405:
        allow = {"Allow": ", ".join(_methods_of(request))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        return _respond(request, _method_not_allowed(allow))
    return _respond(request, refusal(error.status_code, dict(error.headers or {})))


async def _refuse_shadowed_paths(request: Request) -> None:
    """A path that routes name literally is theirs alone: `GET /claims/bulk` is not the claim "bulk".

    Raises MethodNotAllowed.
    """
    if request.scope["path_params"] and request.scope["path"] in _literal_paths(request.app):
        raise _method_not_allowed({"Allow": ", ".join(_methods_of(request))})


def _method_not_allowed(allow: dict[str, str]) -> MethodNotAllowed:
    return MethodNotAllowed("This path does not know that method.", headers=allow)


def _literal_paths(app: FastAPI) -> dict[str, set[str]]:
    """The methods of every path that has no parameter; the routes are all there before the first request is."""
    known: dict[str, set[str]] | None = getattr(app.state, "literal_paths", None)
    if known is None:
        known = app.state.literal_paths = {}
        for route in iter_route_contexts(app.routes):
            if route.path is not None and "{" not in route.path:
                known.setdefault(route.path, set()).update(route.methods or ())
    return known


def _methods_of(request: Request) -> list[str]:
    """Every method of the path: the framework's own `Allow` names those of the first route only."""
    methods = _literal_paths(request.app).get(request.scope["path"])
    if methods is None:
        scopes = [dict(request.scope, method=method) for method in ("GET", "POST", "PUT", "PATCH", "DELETE")]
        routes = request.app.routes
        methods = {scope["method"] for scope in scopes if any(one.matches(scope)[0] is Match.FULL for one in routes)}
    return sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))
