"""The gateway as an ASGI app: who may pass, to whom, and what comes back.

Every request takes the same way: limits, route, token, upstream. The upstreams verify the token again; roles and
tenants are theirs to decide.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Final

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from carebus_common import metrics
from carebus_common.auth import TokenVerifier
from carebus_common.errors import CarebusError, MethodNotAllowed, PayloadTooLarge, RequestTimeout, Unavailable
from carebus_common.http import (
    check_content_length,
    check_headers,
    error_response,
    health_route,
    read_body,
    request_id_of,
    require_content_type,
)
from carebus_common.http.envelopes import PROTECTIVE_HEADERS, Header, Internal
from carebus_common.http.guards import header
from carebus_common.http.health import Check
from carebus_common.http.paths import raw_path_of
from carebus_common.http.query import check_query
from carebus_common.logging import get_logger
from carebus_common.tracing import traceparent_of
from carebus_gateway.graphql.endpoint import GraphQL
from carebus_gateway.graphql.reading import ForCaller
from carebus_gateway.headers import inbound
from carebus_gateway.proxy import Answer, Outgoing, Upload, Upstream
from carebus_gateway.routes import Route, UpstreamName, find_route, timeout_of
from carebus_gateway.settings import Settings

__all__ = ["Gateway"]

log = get_logger(__name__)

_HEALTH: Final = "/health"
_GRAPHQL: Final = "/graphql"
_JSON: Final[Header] = (b"content-type", b"application/json")


class Gateway:
    """The ASGI app over open upstreams."""

    def __init__(
        self,
        upstreams: Mapping[UpstreamName, Upstream],
        verifier: TokenVerifier,
        settings: Settings,
        stopping: asyncio.Event | None = None,
    ) -> None:
        self._upstreams = upstreams
        self._verifier = verifier
        self._settings = settings
        self._stopping = stopping
        self._graphql = GraphQL(upstreams["claims"], settings)
        checks: dict[str, Check] = {name: upstream.check for name, upstream in upstreams.items()}
        self._check_health: Callable[[], Awaitable[Any]] = health_route(checks, timeout=settings.health_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        request_id = request_id_of(scope)
        with bound_contextvars(request_id=request_id):
            try:
                answer = await self._answer(scope, receive)
            except ClientDisconnect:
                return
            except CarebusError as error:
                answer = Answer(*error_response(error, request_id))
            except Exception as error:
                log.exception("request-failed", exc_info=error)
                answer = Answer(*error_response(Internal(), request_id))
            await self._deliver(answer, scope, request_id, receive, send)
        route = scope.get("carebus.route", "unmatched")
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        metrics.HTTP_REQUESTS.labels(route, method, str(answer.status)).inc()
        metrics.HTTP_SECONDS.labels(route).observe(time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        check_headers(scope, self._settings.max_header_bytes)
        path = raw_path_of(scope)
        if path == _HEALTH:
            scope["carebus.route"] = _HEALTH
            return await self._health(scope["method"])
        if path == _GRAPHQL:
            scope["carebus.route"] = _GRAPHQL
            return await self._query(scope, receive)
        route = find_route(scope["method"], path)
        scope["carebus.route"] = route.path
        await self._verify(scope)
        check_query(scope["query_string"])
        query = scope["query_string"].decode("ascii")
        headers = inbound(scope["headers"])
        headers.append(("x-request-id", request_id_of(scope)))
        headers.append(("traceparent", traceparent_of(scope["headers"])))
        body = None if route.method == "GET" else await self._body(scope, receive)
        silence = self._settings.stream_idle_timeout if route.streams else None
        outgoing = Outgoing(route.method, f"{path}?{query}" if query else path, headers, body, silence)
        return await self._ask(route, outgoing)

    async def _query(self, scope: Scope, receive: Receive) -> Answer:
        """What GraphQL has to say; before it is asked, a request is refused as any other."""
        if scope["method"] != "POST":
            raise MethodNotAllowed("This path does not know that method.", headers={"Allow": "POST"})
        await self._verify(scope)
        check_query(scope["query_string"], ())
        require_content_type(scope, "application/json")
        limit = self._settings.graphql_max_body_bytes
        check_content_length(scope, limit)
        body = await read_body(receive, limit, self._settings.body_timeout)
        headers = dict(inbound(scope["headers"]))
        caller = ForCaller(
            headers["authorization"], request_id_of(scope), traceparent_of(scope["headers"]), headers.get("tracestate")
        )
        async with _while_wanted(receive):
            status, answered = await self._graphql.answer(body, caller)
        return Answer(status, [_JSON], answered)

    async def _verify(self, scope: Scope) -> None:
        """Raises Unauthenticated, before any of the body is read; Unavailable if no keys were ever loaded."""
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        await self._verifier.verify(values[0].decode("latin-1") if len(values) == 1 else None)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Upload:
        """Raises PayloadTooLarge, RequestTimeout, ClientDisconnect."""
        limit, patience = self._settings.max_body_bytes, self._settings.body_timeout
        check_content_length(scope, limit)
        try:
            async with asyncio.timeout(patience.total_seconds()):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout(f"The body was not complete within {patience.total_seconds():g} seconds.") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        first: bytes = message.get("body", b"")
        if message.get("more_body", False):
            length = header(scope["headers"], b"content-length")
            return Upload(first, receive, limit=limit, timeout=patience, length=length.decode() if length else None)
        if len(first) > limit:
            raise PayloadTooLarge(f"The body exceeds {limit} bytes.")
        return first

    async def _ask(self, route: Route, outgoing: Outgoing) -> Answer:
        """The answer of the first upstream that knows one; else the most telling of what they said."""
        limit = timeout_of(route, self._settings)
        best: Answer | CarebusError | None = None
        for name in route.upstreams:
            said: Answer | CarebusError
            try:
                said = await self._upstreams[name].send(outgoing, limit)
            except CarebusError as error:
                said = error
            # "There is none" stands only if the one asked next does not know either; if it cannot say, neither can we.
            if best is None or said.status < 400 or (best.status == 404 and said.status >= 500):
                best = said
            if best.status != 404 and best.status < 500:
                break
        assert best is not None
        if isinstance(best, CarebusError):
            raise best
        return best

    async def _health(self, method: str) -> Answer:
        if method not in ("GET", "HEAD"):
            raise MethodNotAllowed("This path does not know that method.", headers={"Allow": "GET, HEAD"})
        breakers = {name: upstream.state.value for name, upstream in self._upstreams.items()}
        try:
            found = await self._check_health()
        except Unavailable as error:
            error.details = [{**detail, "breaker": breakers[detail["path"]]} for detail in error.details]
            raise
        data = {"status": "ok", "checks": found.data.checks, "breakers": breakers}
        return Answer(200, [_JSON], msgspec.json.encode({"data": data}))

    async def _deliver(self, answer: Answer, scope: Scope, request_id: str, receive: Receive, send: Send) -> None:
        """Send the answer on. One that breaks off is not ended properly, so that the caller notices.

        The rest of an answer to GET is given up, and its connection closed, as soon as the caller goes away: the
        upstream may never end it. Events end when the gateway stops: who follows them comes back elsewhere.
        """
        present = {name for name, _ in answer.headers}
        ours = [(b"x-request-id", request_id.encode()), *PROTECTIVE_HEADERS]
        if answer.more is None:
            ours.append((b"content-length", b"%d" % len(answer.body)))
        headers = [*answer.headers, *(pair for pair in ours if pair[0] not in present)]
        start = {"type": "http.response.start", "status": answer.status, "headers": headers}
        # The server leaves the body out of an answer to HEAD; there is no need to fetch the rest of it.
        more = None if scope["method"] == "HEAD" else answer.more
        try:
            await self._send(send, start)
            await self._send(send, {"type": "http.response.body", "body": answer.body, "more_body": more is not None})
            if more is not None:
                events = (b"content-type", b"text/event-stream") in answer.headers
                # While a body is being passed on, what is received is its parts.
                wanted = _while_wanted(receive, self._stopping if events else None)
                async with wanted if scope["method"] == "GET" else nullcontext():
                    while part := await more():
                        await self._send(send, {"type": "http.response.body", "body": part, "more_body": True})
                await self._send(send, {"type": "http.response.body", "body": b""})
        except ClientDisconnect:
            pass
        except (CarebusError, TimeoutError) as error:
            log.warning("answer-cut-off", exc_info=error)
        finally:
            answer.close()

    async def _send(self, send: Send, message: Message) -> None:
        """Raises TimeoutError if the caller stops reading."""
        async with asyncio.timeout(self._settings.reading_timeout.total_seconds()):
            await send(message)


@asynccontextmanager
async def _while_wanted(receive: Receive, stopping: asyncio.Event | None = None) -> AsyncIterator[None]:
    """Breaks off what is within when the caller goes away (ClientDisconnect) or, silently, when we are stopping.

    `receive` must have nothing else to tell any more.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as patience:
            watched = [asyncio.create_task(_disconnected(receive))]
            if stopping is not None:
                watched.append(asyncio.create_task(stopping.wait()))

            def break_off(ended: asyncio.Task[bool]) -> None:
                if not ended.cancelled():
                    patience.reschedule(loop.time())

            for task in watched:
                task.add_done_callback(break_off)
            try:
                yield
            finally:
                gone = watched[0].done()
                for task in watched:
                    task.cancel()
                await asyncio.gather(*watched, return_exceptions=True)
    except TimeoutError:
        if not patience.expired():
            raise
        if gone:
            raise ClientDisconnect from None


async def _disconnected(receive: Receive) -> bool:
    while (await receive())["type"] != "http.disconnect":
        pass
    return True
