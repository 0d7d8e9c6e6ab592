"""`POST /events` and `POST /events/batch`: from a request to the broker's receipt.

The two are served in front of the FastAPI app, which would cost more than all the rest; `documentation` describes
them in its OpenAPI document. Everything else goes on to the app.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final, ParamSpec, TypeAlias, TypeVar

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Receive, Scope, Send

from carebus_common import metrics
from carebus_common.auth import Caller, TokenVerifier, require_role
from carebus_common.errors import CarebusError, InvalidRequest, PayloadTooLarge, Unavailable, UnsupportedMediaType
from carebus_common.http import (
    check_content_length,
    check_headers,
    error_response,
    read_body,
    request_id_of,
    require_content_type,
    send_response,
)
from carebus_common.http.envelopes import Internal, Response
from carebus_common.http.guards import ClientDisconnect, header
from carebus_common.http.idempotency_key import parse_key
from carebus_common.http.query import check_query
from carebus_common.kafka import BrokerAway, MessageRefused, Publisher
from carebus_common.logging import get_logger
from carebus_common.messages import Receipt
from carebus_common.tracing import traceparent_of
from carebus_ingest.accept import Accepted, Sender, accept_event
from carebus_ingest.answers import Outcome, Stored, batch_answer, broker_away, receipt_answer
from carebus_ingest.batch import NDJSON_TYPES, cut
from carebus_ingest.idempotency import Replays
from carebus_ingest.rate_limit import RateLimiter
from carebus_ingest.settings import Settings

__all__ = ["EventRoutes"]

_log = get_logger(__name__)
Route: TypeAlias = Callable[[Scope, Receive], Awaitable[Response]]
P = ParamSpec("P")
T = TypeVar("T")

# Parsing holds up everybody else: a longer body is parsed beside the loop, and a batch pauses this often.
_LONG_BODY: Final = 64 * 1024
_PAUSE_EVERY: Final = timedelta(milliseconds=3)
# Items judged before they are published.
_CHUNK: Final = 500


class EventRoutes:
    """The ASGI app that takes events; whatever is no event goes to `app`."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        *,
        verifier: TokenVerifier,
        limiter: RateLimiter,
        replays: Replays,
        publisher: Publisher,
    ) -> None:
        self._app = app
        self._settings = settings
        self._verifier = verifier
        self._limiter = limiter
        self._replays = replays
        self._publisher = publisher
        self._routes: dict[tuple[str, bytes], Route] = {
            ("POST", b"/events"): self.post_event,
            ("POST", b"/events/batch"): self.post_batch,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["raw_path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        try:
            response = await route(scope, receive)
        except ClientDisconnect:
            return
        except CarebusError as error:
            metrics.EVENTS_REJECTED.labels(error.code).inc()
            response = error_response(error, request_id_of(scope))
        except Exception as error:
            _log.error("request-failed", request_id=request_id_of(scope), exc_info=error)
            response = error_response(Internal(), request_id_of(scope))
        await send_response(send, response)
        answered, seconds = _measured(scope["path"], response[0])
        answered.inc()
        seconds.observe(time.perf_counter() - began)

    async def post_event(self, scope: Scope, receive: Receive) -> Response:
        """One event: 202 with the receipt once the broker has acknowledged it."""
        caller = await self._admit(scope)
        require_content_type(scope, "application/json")
        key = parse_key(header(scope["headers"], b"idempotency-key"))
        body = await self._body(scope, receive, self._settings.max_event_bytes)
        await self._limiter.take(caller.organization_id, 1, len(body))
        accepted = await _aside(len(body), accept_event, body, _sender(caller, scope, key))
        if key is None:
            return self._receipt(scope, await self._publish(accepted))
        replay = await self._replays.begin(caller.organization_id, key, body)
        if replay is not None:
            return self._receipt(scope, replay, replayed=True)
        stored = await self._publish(accepted)
        await self._replays.finish(caller.organization_id, key, body, stored)
        return self._receipt(scope, stored)

    async def post_batch(self, scope: Scope, receive: Receive) -> Response:
        """Many events: a result for each, in their order."""
        caller = await self._admit(scope)
        media_type = require_content_type(scope, "application/json", *NDJSON_TYPES)
        if header(scope["headers"], b"idempotency-key") is not None:
            raise InvalidRequest(
                "A batch takes no Idempotency-Key: give its events eventIds, and repeating it is safe.",
                details=[{"path": "idempotency-key", "rule": "for a single event only"}],
            )
        body = await self._body(scope, receive, self._settings.max_batch_bytes)
        items = await _aside(len(body), cut, body, media_type, self._settings.max_batch_events)
        grant = await self._limiter.take(caller.organization_id, len(items), len(body))
        sender = _sender(caller, scope, None)
        outcomes: list[Outcome] = []
        for begin in range(0, grant.events, _CHUNK):
            judged = await self._judge(items[begin : min(begin + _CHUNK, grant.events)], sender)
            outcomes += await self._publish_each(
                judged, away=any(isinstance(outcome, Unavailable) for outcome in outcomes)
            )
        if grant.refusal is not None:
            outcomes += [grant.refusal] * (len(items) - grant.events)
        return batch_answer(outcomes, self._settings.public_url, request_id_of(scope))

    async def _judge(self, items: list[bytes], sender: Sender) -> list[Accepted | CarebusError]:
        """Each item's message or its refusal; others run every few milliseconds."""
        judged: list[Accepted | CarebusError] = []
        resume = time.perf_counter() + _PAUSE_EVERY.total_seconds()
        for item in items:
            try:
                if len(item) > self._settings.max_event_bytes:
                    raise PayloadTooLarge(f"The event exceeds {self._settings.max_event_bytes} bytes.")
                judged.append(await _aside(len(item), accept_event, item, sender))
            except CarebusError as error:
                judged.append(error)
            if time.perf_counter() > resume:
                await asyncio.sleep(0)
                resume = time.perf_counter() + _PAUSE_EVERY.total_seconds()
        return judged

    async def _publish_each(self, judged: list[Accepted | CarebusError], *, away: bool) -> list[Outcome]:
        """Publish those that may be, in order, unless the broker went `away` with an earlier one."""
        messages = [one.message for one in judged if isinstance(one, Accepted)]
        results = iter([BrokerAway()] * len(messages) if away else await self._publisher.publish_each(messages))
        outcomes = [_outcome(one, next(results)) if isinstance(one, Accepted) else one for one in judged]
        _count(judged, outcomes)
        return outcomes

    async def _admit(self, scope: Scope) -> Caller:
        """What is refused before anything of the body is read. Raises for headers, query, token and role."""
        check_headers(scope, self._settings.max_header_bytes)
        if scope["query_string"]:
            check_query(scope["query_string"], allowed=())
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        caller = await self._verifier.verify(given[0].decode("latin-1") if len(given) == 1 else None)
        require_role(caller, "event-sender")
        return caller

    async def _body(self, scope: Scope, receive: Receive, limit: int) -> bytes:
        """The body as it was sent; raises for one that is compressed, too large or late."""
        if (header(scope["headers"], b"content-encoding") or b"identity") != b"identity":
            raise UnsupportedMediaType("Send the body without a Content-Encoding.")
        check_content_length(scope, limit)
        return await read_body(receive, limit, self._settings.body_timeout)

    async def _publish(self, accepted: Accepted) -> Stored:
        """Raises Unavailable, PayloadTooLarge."""
        try:
            receipt = await self._publisher.publish(accepted.message)
        except (BrokerAway, MessageRefused) as error:
            raise _refusal(accepted, error) from None
        _accepted(metrics.bounded_type(accepted.type)).inc()
        return Stored(accepted.event_id, receipt)

    def _receipt(self, scope: Scope, stored: Stored, *, replayed: bool = False) -> Response:
        return receipt_answer(stored, self._settings.public_url, request_id_of(scope), replayed=replayed)


# Looking a metric's child up by its labels costs more than counting.
@cache
def _measured(path: str, status: int) -> tuple[Counter, Histogram]:
    return metrics.HTTP_REQUESTS.labels(path, "POST", str(status)), metrics.HTTP_SECONDS.labels(path)


@cache
def _accepted(bounded_type: str) -> Counter:
    return metrics.EVENTS_ACCEPTED.labels(bounded_type)


def _sender(caller: Caller, scope: Scope, key: str | None) -> Sender:
    return Sender(caller.organization_id, datetime.now(UTC), traceparent_of(scope["headers"]), key)


def _outcome(accepted: Accepted, result: Receipt | BrokerAway | MessageRefused) -> Outcome:
    return Stored(accepted.event_id, result) if isinstance(result, Receipt) else _refusal(accepted, result)


def _refusal(accepted: Accepted, error: BrokerAway | MessageRefused) -> CarebusError:
    if isinstance(error, MessageRefused):
        return PayloadTooLarge("The broker takes no event of this size.")
    event_id = str(accepted.event_id)
    return broker_away([{"path": "$.eventId", "rule": "repeat with this one", "eventId": event_id}])


def _count(judged: Sequence[Accepted | CarebusError], outcomes: Sequence[Outcome]) -> None:
    stored: collections.Counter[str] = collections.Counter()
    refused: collections.Counter[str] = collections.Counter()
    for one, outcome in zip(judged, outcomes, strict=True):
        if isinstance(outcome, CarebusError):
            refused[outcome.code] += 1
        elif isinstance(one, Accepted):
            stored[metrics.bounded_type(one.type)] += 1
    for name, count in stored.items():
        _accepted(name).inc(count)
    for code, count in refused.items():
        metrics.EVENTS_REJECTED.labels(code).inc(count)


async def _aside(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it, beside the event loop if it is about a long body."""
    if size > _LONG_BODY:
        return await asyncio.to_thread(function, *args, **kwargs)
    return function(*args, **kwargs)
