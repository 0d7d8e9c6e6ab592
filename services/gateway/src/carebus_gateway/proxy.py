"""One exchange with one upstream: bounded in time, guarded by a circuit breaker, its answer checked.

A request body that came in one piece is sent in one piece, a longer one as it comes. An answer is held back until
it is complete or 256 KiB long: what fails before that is a proper refusal, what fails after cuts the connection.
A stream is not held back at all, nor bounded in time; only its silence is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import aiohttp
import msgspec
from multidict import CIMultiDict
from starlette.requests import ClientDisconnect
from starlette.types import Receive
from yarl import URL

from carebus_common import metrics
from carebus_common.errors import (
    BadGateway,
    CarebusError,
    GatewayTimeout,
    PayloadTooLarge,
    RequestTimeout,
    Unavailable,
)
from carebus_common.http import Unhealthy
from carebus_common.http.envelopes import Header
from carebus_common.logging import get_logger
from carebus_gateway.breaker import Breaker, Open, State
from carebus_gateway.headers import outbound
from carebus_gateway.settings import Settings

__all__ = ["Answer", "Outgoing", "Upload", "Upstream", "client_session"]

log = get_logger(__name__)

_HELD_BACK: Final = 256 * 1024
_RETRY_AFTER: Final = timedelta(seconds=1)
_STREAMED: Final = frozenset({"text/event-stream", "text/csv", "application/x-ndjson"})
_GAUGE: Final = {State.CLOSED: 0.0, State.HALF_OPEN: 0.5, State.OPEN: 1.0}


class Upload:
    """A request body in parts, as the caller sends it; at most `limit` bytes, complete within `timeout`.

    `refusal` is why it ended early, if it did: the client library wraps what an iterator raises.
    """

    def __init__(self, first: bytes, receive: Receive, *, limit: int, timeout: timedelta, length: str | None) -> None:
        self.length = length
        self.timeout = timeout
        self.refusal: CarebusError | ClientDisconnect | None = None
        self.on_end: Callable[[], None] = lambda: None
        self._first = first
        self._receive = receive
        self._limit = limit

    async def parts(self) -> AsyncIterator[bytes]:
        deadline = asyncio.get_running_loop().time() + self.timeout.total_seconds()
        part, more, size = self._first, True, 0
        while True:
            size += len(part)
            if size > self._limit:
                raise self._refused(PayloadTooLarge(f"The body exceeds {self._limit} bytes."))
            if part:
                yield part
            if not more:
                self.on_end()
                return
            try:
                async with asyncio.timeout_at(deadline):
                    message = await self._receive()
            except TimeoutError:
                seconds = self.timeout.total_seconds()
                raise self._refused(RequestTimeout(f"The body was not complete within {seconds:g} seconds.")) from None
            if message["type"] == "http.disconnect":
                raise self._refused(ClientDisconnect())
            part, more = message.get("body", b""), message.get("more_body", False)

    def _refused(self, why: CarebusError | ClientDisconnect) -> Exception:
        self.refusal = why
        return why


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request for an upstream: `target` is path and query as the caller sent them.

    `silence`: its answer may be a stream, which may be silent for that long; None: it may not.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes | Upload | None = None
    silence: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An upstream's answer: the whole body, or its beginning and then `more` (empty at the end).

    One with `more` holds a connection until it is closed.
    """

    status: int
    headers: list[Header]
    body: bytes
    more: Callable[[], Awaitable[bytes]] | None = None
    close: Callable[[], None] = lambda: None


class _Fine(msgspec.Struct):
    data: msgspec.Raw


class _ErrorBody(msgspec.Struct):
    code: str
    message: str


class _Refusal(msgspec.Struct):
    error: _ErrorBody


def client_session(settings: Settings) -> aiohttp.ClientSession:
    """The pool of connections to all upstreams; made in a running loop, closed by who made it."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,
            limit_per_host=settings.connections_per_upstream + settings.streams_per_upstream,
            # Shorter than the upstreams keep theirs (75 s), so that none closes one we are about to use.
            keepalive_timeout=60,
            ttl_dns_cache=10,
        ),
        timeout=aiohttp.ClientTimeout(total=None, connect=settings.connect_timeout.total_seconds()),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
    )
    # It would retry on its own, uncounted; what is retried is decided in `Upstream.send`.
    session._retry_connection = False
    return session


class Upstream:
    """A service behind the gateway."""

    def __init__(
        self,
        name: str,
        url: str,
        session: aiohttp.ClientSession,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._url = url
        self._session = session
        self._breaker = Breaker(
            failures=settings.breaker_failures, rest=settings.breaker_rest, clock=clock, on_change=self._changed
        )
        self._streams_left = settings.streams_per_upstream
        metrics.BREAKER_OPEN.labels(name).set(0)

    @property
    def state(self) -> State:
        return self._breaker.state

    def _changed(self, state: State) -> None:
        metrics.BREAKER_OPEN.labels(self.name).set(_GAUGE[state])
        metrics.BREAKER_TRANSITIONS.labels(self.name, state.value).inc()
        log.warning("breaker-changed", upstream=self.name, state=state.value)

    async def send(self, outgoing: Outgoing, limit: timedelta) -> Answer:
        """The upstream's answer, whatever its status; `limit` bounds the wait for its head and for each part.

        Raises Unavailable (away, left alone by the breaker, or has all the streams it may have), GatewayTimeout,
        BadGateway (not what our services answer), and what ended an upload. A GET whose connection failed before its
        answer began is sent once more.
        """
        if outgoing.silence is not None:
            return await self._stream(outgoing, limit)
        return await self._send(outgoing, limit)

    async def _stream(self, outgoing: Outgoing, limit: timedelta) -> Answer:
        """The answer, which counts as a stream until it is closed."""
        if not self._streams_left:
            raise Unavailable("There are too many streams already.", retry_after=_RETRY_AFTER)
        self._streams_left -= 1
        try:
            answer = await self._send(outgoing, limit)
        except BaseException:
            self._streams_left += 1
            raise
        if answer.more is None:
            self._streams_left += 1
            return answer
        return replace(answer, close=self._freeing(answer.close))

    def _freeing(self, close: Callable[[], None]) -> Callable[[], None]:
        open_still = True

        def close_and_free() -> None:
            nonlocal open_still
            close()
            self._streams_left += open_still
            open_still = False

        return close_and_free

    async def _send(self, outgoing: Outgoing, limit: timedelta) -> Answer:
        try:
            return await self._attempt(outgoing, limit)
        except _Lost as lost:
            if outgoing.method != "GET":
                raise self._away() from lost.__cause__
        try:
            return await self._attempt(outgoing, limit)
        except _Lost as lost:
            raise self._away() from lost.__cause__

    async def _attempt(self, outgoing: Outgoing, limit: timedelta) -> Answer:
        try:
            permit = self._breaker.admit()
        except Open as error:
            raise self._away(error.retry_after) from None
        began = time.perf_counter()
        result = "abandoned"
        try:
            answer = await self._exchange(outgoing, limit)
            permit.succeeded()
            result = f"{answer.status // 100}xx"
            return answer
        except _Lost:
            permit.failed()
            result = "refused"
            raise
        except GatewayTimeout:
            permit.failed()
            result = "timeout"
            raise
        except BadGateway:
            permit.failed()
            result = "nonsense"
            raise
        finally:
            permit.abandoned()
            metrics.UPSTREAM_SECONDS.labels(self.name, result).observe(time.perf_counter() - began)

    async def _exchange(self, outgoing: Outgoing, limit: timedelta) -> Answer:
        upload = outgoing.body if isinstance(outgoing.body, Upload) else None
        try:
            response = await self._head(outgoing, upload, limit)
        except (aiohttp.ClientError, OSError, TimeoutError, CarebusError, ClientDisconnect) as error:
            if upload is not None and upload.refusal is not None:
                raise upload.refusal from None
            if isinstance(error, aiohttp.ConnectionTimeoutError | aiohttp.ClientConnectionError):
                raise _Lost from error
            if isinstance(error, TimeoutError):
                raise GatewayTimeout("The service behind did not answer in time.") from error
            raise self._nonsense(error) from error
        try:
            return await self._checked(response, limit, outgoing.silence)
        except BaseException:
            response.close()
            raise

    async def _head(self, outgoing: Outgoing, upload: Upload | None, limit: timedelta) -> aiohttp.ClientResponse:
        """The answer's head: within `limit` after the request is complete, and it completes within its own timeout."""
        headers = CIMultiDict(outgoing.headers)
        data: Any = outgoing.body
        # An upstream that does not read holds up the upload, whose own timeout only watches the caller.
        patience = limit if upload is None else limit + upload.timeout
        async with asyncio.timeout(patience.total_seconds()) as deadline:
            if upload is not None:
                loop = asyncio.get_running_loop()
                upload.on_end = lambda: deadline.reschedule(loop.time() + limit.total_seconds())
                data = upload.parts()
                if upload.length is not None:
                    headers["Content-Length"] = upload.length
            return await self._session.request(
                outgoing.method,
                URL(self._url + outgoing.target, encoded=True),
                headers=headers,
                data=data,
                allow_redirects=False,
            )

    async def _checked(
        self, response: aiohttp.ClientResponse, limit: timedelta, silence: timedelta | None = None
    ) -> Answer:
        """Raises BadGateway for what is no answer of ours, GatewayTimeout for one that stalls."""
        if response.status < 200 or 300 <= response.status < 400 or response.headers.get("Content-Encoding"):
            raise self._nonsense(f"status {response.status}")
        if silence is not None and response.status < 400 and response.content_type in _STREAMED:
            patience = silence

            async def next_part() -> bytes:
                return await self._part(response, patience)

            return Answer(response.status, outbound(response.raw_headers), b"", next_part, response.close)
        if response.content_type != "application/json":
            raise self._nonsense("content type")
        body = bytearray()
        while len(body) < _HELD_BACK:
            part = await self._part(response, limit)
            if not part:
                break
            body += part
        else:
            if response.status >= 400:
                raise self._nonsense("endless error")

            async def more() -> bytes:
                return await self._part(response, limit)

            return Answer(response.status, outbound(response.raw_headers), bytes(body), more, response.close)
        try:
            msgspec.json.decode(body, type=_Fine if response.status < 400 else _Refusal)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._nonsense("body") from None
        return Answer(response.status, outbound(response.raw_headers), bytes(body))

    async def _part(self, response: aiohttp.ClientResponse, limit: timedelta) -> bytes:
        """The next part of the body, empty at its end. Raises BadGateway, GatewayTimeout."""
        try:
            async with asyncio.timeout(limit.total_seconds()):
                return await response.content.readany()
        except TimeoutError as error:
            raise GatewayTimeout("The service behind did not finish its answer in time.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._nonsense(error) from error

    async def check(self) -> None:
        """Raises Unhealthy unless the upstream itself says that all is well. Asks past the breaker."""
        try:
            async with self._session.get(f"{self._url}/health", allow_redirects=False) as response:
                if response.status != 200:
                    raise Unhealthy("reports itself unhealthy" if response.status == 503 else "gives no proper answer")
        except aiohttp.ConnectionTimeoutError:
            raise Unhealthy("no answer in time") from None
        except aiohttp.ClientConnectionError:
            raise Unhealthy("away") from None
        except aiohttp.ClientError:
            raise Unhealthy("gives no proper answer") from None

    def _away(self, retry_after: timedelta = _RETRY_AFTER) -> Unavailable:
        return Unavailable("The service behind is away.", retry_after=retry_after)

    def _nonsense(self, why: Exception | str) -> BadGateway:
        # The text of an exception may quote what was sent; its class does not.
        log.warning("upstream-nonsense", upstream=self.name, why=why if isinstance(why, str) else type(why).__name__)
        return BadGateway("The service behind gave no proper answer.")


class _Lost(Exception):
    """The connection failed before the answer began."""
