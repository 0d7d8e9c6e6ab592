"""An async HTTP client of the gateway, with bounded retries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from carebus_cli.retry import RETRIED_STATUSES, RetryPolicy, parse_retry_after

__all__ = ["ApiError", "GatewayClient", "ItemResult", "Receipt", "Refused", "Unreachable"]

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PAGE: Final = 200


class ApiError(Exception):
    """The gateway gave no usable answer. Subclasses: Refused (it answered an error), Unreachable (it did not)."""


class Refused(ApiError):
    """An error envelope: status, the stable `code`, the message and the details, and the request id to quote."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(error.get("code", "unknown"))
        self.message = str(error.get("message", f"HTTP status {status}"))
        self.details: list[Any] = list(error.get("details") or [])
        self.request_id = error.get("requestId")
        super().__init__(f"{status} {self.code}: {self.message}")


class Unreachable(ApiError):
    """No connection, or no answer in time."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The broker's acknowledgement of one event."""

    event_id: str
    partition: int
    offset: int
    status_url: str


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of one event of a batch: a receipt, or the error's code, message and details.

    If it is `retriable`, the gateway wants it again after `retry_after` seconds (None: it did not say).
    """

    receipt: Receipt | None = None
    code: str = ""
    message: str = ""
    details: list[Any] = field(default_factory=list)
    retriable: bool = False
    retry_after: float | None = None


class GatewayClient:
    """Use as an async context manager. Answers 429, 502, 503 and 504 are retried as `policy` says, Retry-After first.

    So is a lost connection, once the gateway has answered at all: the first connection fails at once, so that a
    wrong URL or a system that is not up is told in no time. Repeating is safe for reads, and for events that
    carry their eventId; `send` and `send_batch` must be given such.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        policy: RetryPolicy | None = None,
        timeout: float = 30.0,
        connections: int = 32,
    ) -> None:
        self.url = url.rstrip("/")
        self._policy = policy or RetryPolicy()
        self._answered = False
        self._ahead = timedelta()
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(timeout, connect=5.0),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            # A proxy from the environment serves remote gateways, and never this machine.
            trust_env=urlsplit(url).hostname not in _LOOPBACK,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def send(self, event: bytes) -> Receipt:
        """Post one event, as JSON. Raises Refused, Unreachable."""
        answer = await self._request("POST", "/events", content=event, content_type="application/json")
        return _receipt(_data(answer))

    async def send_batch(self, events: Sequence[bytes]) -> list[ItemResult]:
        """Post events, one JSON text each, as NDJSON; a result per event, in their order.

        At most 10,000 events and 8 MiB. Raises Refused, Unreachable if there is no answer per item.
        """
        body = b"\n".join(events) + b"\n"
        answer = await self._request("POST", "/events/batch", content=body, content_type="application/x-ndjson")
        retry_after = parse_retry_after(answer.headers.get("Retry-After"))
        results = [_item(item, retry_after) for item in _data(answer)]
        if len(results) != len(events):
            raise Refused(502, {"code": "bad-gateway", "message": "The answer has not one result per event."})
        return results

    async def event(self, event_id: str, *, partition: int | None = None, offset: int | None = None) -> dict[str, Any]:
        """The status of an event. With its receipt's place it is known from acceptance on, else once processed.

        Raises Refused (404 if it is not known), Unreachable.
        """
        place = {"partition": partition, "offset": offset}
        params = {name: str(value) for name, value in place.items() if value is not None}
        found: dict[str, Any] = _data(await self._request("GET", f"/events/{_segment(event_id)}", params=params))
        return found

    async def patient(self, patient_id: str) -> dict[str, Any]:
        """The patient's current stay, flags and counts. Raises Refused (404 if there is none), Unreachable."""
        found: dict[str, Any] = _data(await self._request("GET", f"/patients/{_segment(patient_id)}"))
        return found

    async def history_page(self, patient_id: str, params: Mapping[str, str]) -> tuple[list[dict[str, Any]], str | None]:
        """One page of the patient's history and the cursor of the next. Raises Refused, Unreachable."""
        answer = await self._request("GET", f"/patients/{_segment(patient_id)}/history", params=params)
        return _data(answer), (_body(answer).get("page") or {}).get("next")

    async def history(
        self, patient_id: str, params: Mapping[str, str] | None = None, *, page_size: int = _PAGE
    ) -> AsyncIterator[dict[str, Any]]:
        """The whole history that `params` (`type`, `from`, `to`) select, page by page. Raises Refused, Unreachable."""
        query = {**(params or {}), "limit": str(page_size)}
        while True:
            items, cursor = await self.history_page(patient_id, query)
            for item in items:
                yield item
            if cursor is None:
                return
            query["cursor"] = cursor

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The whole answer, `{"data": …}` with its `page` if it is a list. `body` goes as JSON.

        Raises Refused, Unreachable. Asks again like all others here: what is asked must bear being asked twice.
        """
        content = None if body is None else msgspec.json.encode(body)
        content_type = None if body is None else "application/json"
        return _body(await self._request(method, path, params=params, content=content, content_type=content_type))

    def now(self) -> datetime:
        """The time by the gateway's clock, as its last answer told it; this machine's until then."""
        return datetime.now(UTC) + self._ahead

    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        content_type: str | None = None,
    ) -> httpx.Response:
        headers = {"Content-Type": content_type} if content_type else {}
        began = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            retry_after: float | None = None
            failure: ApiError
            try:
                response = await self._http.request(method, path, params=params, content=content, headers=headers)
            except httpx.TransportError as error:
                failure = Unreachable(f"no answer from {self.url}: {type(error).__name__}")
                if not self._answered:
                    raise failure from error
            else:
                self._answered = True
                self._ahead = _ahead(response)
                if response.is_success:
                    return response
                failure = _refused(response)
                if response.status_code not in RETRIED_STATUSES:
                    raise failure
                retry_after = parse_retry_after(response.headers.get("Retry-After"))
            seconds = self._policy.wait(attempt, time.monotonic() - began, retry_after)
            if seconds is None:
                raise failure
            await asyncio.sleep(seconds)


def _ahead(response: httpx.Response) -> timedelta:
    """How far the gateway's clock is ahead of this machine's; Date has whole seconds, so less than two are none."""
    try:
        ahead = parsedate_to_datetime(response.headers.get("Date", "")) - datetime.now(UTC)
    except (TypeError, ValueError):
        return timedelta()
    return ahead if abs(ahead) >= timedelta(seconds=2) else timedelta()


def _segment(value: str) -> str:
    return quote(value, safe="")


def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        body = None
    if not isinstance(body, dict) or "data" not in body:
        raise Refused(502, {"code": "bad-gateway", "message": "The answer is no Carebus answer: is the URL right?"})
    return body


def _refused(response: httpx.Response) -> Refused:
    try:
        body = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        body = None
    error = body.get("error") if isinstance(body, dict) else None
    return Refused(response.status_code, error if isinstance(error, dict) else {})


def _data(response: httpx.Response) -> Any:
    return _body(response)["data"]


def _receipt(data: Mapping[str, Any]) -> Receipt:
    return Receipt(data["eventId"], data["partition"], data["offset"], data["statusUrl"])


def _item(item: Mapping[str, Any], retry_after: float | None) -> ItemResult:
    if item.get("status") == "accepted":
        return ItemResult(_receipt(item))
    error = item.get("error") or {}
    code = str(error.get("code", "unknown"))
    return ItemResult(
        code=code,
        message=str(error.get("message", "")),
        details=list(error.get("details") or []),
        retriable=code in {"unavailable", "rate-limited"},
        retry_after=retry_after,
    )
