"""The functions a raw ASGI route shares with the app."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope

from carebus_common.errors import (
    HeadersTooLarge,
    InvalidRequest,
    PayloadTooLarge,
    RateLimited,
    RequestTimeout,
    UnsupportedMediaType,
)
from carebus_common.http import error_response
from carebus_common.http.guards import (
    ClientDisconnect,
    check_content_length,
    check_headers,
    content_type_of,
    has_body,
    header,
    read_body,
    request_id_of,
    require_content_type,
)

SECOND = timedelta(seconds=1)


def scope_of(*headers: tuple[bytes, bytes], **more: Any) -> Scope:
    return {"type": "http", "raw_path": b"/x", "query_string": b"", "headers": list(headers), **more}


def receiving(*messages: Message) -> Receive:
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_in_parts_is_read_whole() -> None:
    assert (
        await read_body(receiving(part(b"ab", more=True), part(b"", more=True), part(b"c", more=False)), 3, SECOND)
        == b"abc"
    )
    assert await read_body(receiving(part(b"abc", more=False)), 3, SECOND) == b"abc"
    assert await read_body(receiving({"type": "http.request"}), 3, SECOND) == b""


@pytest.mark.parametrize(
    "parts",
    [
        [part(b"abcd", more=False)],
        [part(b"abcd", more=True)],
        [part(b"abc", more=True), part(b"d", more=False)],
        [part(b"abc", more=True), part(b"d", more=True)],
    ],
)
async def test_a_body_over_the_limit_is_refused_without_waiting_for_its_end(parts: list[Message]) -> None:
    with pytest.raises(PayloadTooLarge):
        await read_body(receiving(*parts), 3, SECOND)


@pytest.mark.parametrize("parts", [[], [part(b"a", more=True)], [part(b"a", more=True), part(b"", more=True)]])
async def test_a_body_that_stalls_is_refused(parts: list[Message]) -> None:
    with pytest.raises(RequestTimeout) as refusal:
        await read_body(receiving(*parts), 3, timedelta(milliseconds=20))
    assert refusal.value.headers["Connection"] == "close"


async def test_a_body_that_drips_is_refused() -> None:
    async def drip() -> Message:
        await asyncio.sleep(0.005)
        return part(b"x", more=True)

    with pytest.raises(RequestTimeout):
        await read_body(drip, 1_000_000, timedelta(milliseconds=50))


async def test_a_caller_who_went_away_is_told_apart() -> None:
    with pytest.raises(ClientDisconnect):
        await read_body(receiving(part(b"a", more=True), {"type": "http.disconnect"}), 3, SECOND)


@pytest.mark.parametrize("value", [b"11", b"99999999999999999999999999"])
def test_an_announced_length_over_the_limit_is_refused(value: bytes) -> None:
    check_content_length(scope_of((b"content-length", b"10")), 10)
    check_content_length(scope_of(), 10)
    with pytest.raises(PayloadTooLarge):
        check_content_length(scope_of((b"content-length", value)), 10)


@pytest.mark.parametrize("value", [b"", b"-1", b"1e3", b"0x1", b" 1", b"\xd9\xa1"])
def test_an_announced_length_that_is_no_number_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidRequest):
        check_content_length(scope_of((b"content-length", value)), 10)


def test_headers_and_target_count_together() -> None:
    check_headers(scope_of((b"a", b"b" * 93)), 100)  # "/x", "a: " and CRLF
    with pytest.raises(HeadersTooLarge):
        check_headers(scope_of((b"a", b"b" * 94)), 100)
    with pytest.raises(HeadersTooLarge):
        check_headers(scope_of((b"a", b"b" * 90), query_string=b"q=12"), 100)


def test_a_body_is_announced_by_its_length_or_by_chunks() -> None:
    assert has_body(scope_of((b"content-length", b"1")))
    assert has_body(scope_of((b"transfer-encoding", b"chunked")))
    assert not has_body(scope_of((b"content-length", b"0")))
    assert not has_body(scope_of())


def test_a_request_keeps_its_id() -> None:
    scope = scope_of((b"x-request-id", b"abc"))
    assert request_id_of(scope) == "abc"
    scope["headers"] = []
    assert request_id_of(scope) == "abc"
    assert request_id_of(scope_of()) != request_id_of(scope_of())


def test_a_repeated_header_is_refused() -> None:
    assert header([(b"a", b"1"), (b"b", b"2")], b"b") == b"2"
    assert header([(b"a", b"1")], b"b") is None
    with pytest.raises(InvalidRequest):
        header([(b"a", b"1"), (b"a", b"1")], b"a")


def test_a_media_type_is_told_from_its_parameters() -> None:
    assert content_type_of(scope_of((b"content-type", b" Application/JSON ; charset=x"))) == "application/json"
    assert content_type_of(scope_of()) == ""
    json_or_lines = ("application/json", "application/x-ndjson")
    assert (
        require_content_type(scope_of((b"content-type", b"application/x-ndjson")), *json_or_lines) == json_or_lines[1]
    )
    for value in (b"text/plain", b"application/json;charset=latin-1", b"application/json, text/plain"):
        with pytest.raises(UnsupportedMediaType):
            require_content_type(scope_of((b"content-type", value)), *json_or_lines)


def test_a_refusal_becomes_status_headers_and_body() -> None:
    error = RateLimited("Slow down.", retry_after=timedelta(seconds=30), headers={"RateLimit": '"default";r=0'})
    status, headers, body = error_response(error, "id-1")
    assert status == 429
    found = dict(headers)
    assert len(found) == len(headers)
    assert found[b"retry-after"] == b"30"
    assert found[b"ratelimit"] == b'"default";r=0'
    assert found[b"x-request-id"] == b"id-1"
    assert found[b"content-length"] == str(len(body)).encode()
    assert json.loads(body) == {
        "error": {"code": "rate-limited", "message": "Slow down.", "details": [], "requestId": "id-1"}
    }
