from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

EVENT_ID = "0190b5c2-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    ("method", "target", "upstream"),
    [
        ("POST", "/events", "ingest"),
        ("POST", "/events/batch", "ingest"),
        ("GET", f"/events/{EVENT_ID}?partition=3&offset=12", "claims"),
        ("GET", "/patients?patientId=a%252Cb,c", "claims"),
        ("GET", "/patients/a%2Fb%25?", "claims"),
        ("GET", "/patients/p/history?type=a&from=2026-01-01T00%3A00%3A00%2B01:00&cursor=x_-", "claims"),
        ("GET", "/patients/%0D%0Aset-cookie:x/history", "claims"),
        ("GET", "/patients/p%2F../history", "claims"),
        ("GET", "/patients/p?patientId[$ne]=x", "claims"),
        ("GET", "/ops/processor/dead-letters/medical.events.v1-3-7~1", "processor"),
        ("POST", "/ops/processor/dead-letters/redrive", "processor"),
        ("GET", "/ops/processor/runs/0198c0de-0000-4000-8000-000000000001", "processor"),
        ("GET", "/ops/claims/topics/claims.dlq.v1/tail?limit=5&cursor=x_-", "claims"),
        ("POST", "/ops/claims/consumer/resume", "claims"),
        ("POST", "/ops/claims/dead-letters/../reveal", "claims"),
    ],
)
async def test_a_request_reaches_its_upstream_as_it_was_sent(
    front: Any, method: str, target: str, upstream: str
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {front.token()['Authorization']}\r\n"
    writer.write(head.encode() + (b"Content-Length: 2\r\n\r\n{}" if method == "POST" else b"\r\n"))

    assert b" 200 " in await reader.readline()
    writer.close()
    (request,) = getattr(front, upstream).requests
    assert (request.method, request.target) == (method, target.removesuffix("?"))
    assert sum(len(server.requests) for server in (front.ingest, front.processor, front.claims)) == 1


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/event",
        "/events/",
        f"/events/{EVENT_ID}/x",
        "/patients/",
        "/metrics",
        "/docs",
        "/ops",
        "/ops/processor",
        "/ops/ingest/consumer",
    ],
)
async def test_what_is_not_in_the_table_is_not_found(front: Any, target: str) -> None:
    answer = await front.get(target)

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not-found")
    assert not front.claims.requests


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("GET", "/events", "POST"),
        ("GET", "/events/batch", "POST"),
        ("DELETE", f"/events/{EVENT_ID}", "GET, HEAD"),
        ("PATCH", "/patients/p", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/ops/claims/audit", "GET, HEAD"),
        ("PUT", "/ops/claims/purges", "GET, HEAD, POST"),
    ],
)
async def test_another_method_is_told_which_there_are(front: Any, method: str, target: str, allowed: str) -> None:
    answer = await front.http.request(method, target, headers=front.token())

    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("authorization", [None, "Bearer nonsense", "Basic YTpi", "a.b.c"])
async def test_nobody_passes_without_a_valid_token(front: Any, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    for request in (("GET", "/patients/p"), ("POST", "/events"), ("GET", f"/events/{EVENT_ID}")):
        answer = await front.http.request(*request, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")

    assert not [*front.ingest.requests, *front.claims.requests]


async def test_two_tokens_are_none(front: Any) -> None:
    pair = [("Authorization", front.token()["Authorization"]), ("Authorization", front.token()["Authorization"])]

    assert (await front.http.get("/patients/p", headers=pair)).status_code == 401


async def test_an_upload_without_a_token_is_refused_and_cut_off(front: Any) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)
            await asyncio.sleep(0.001)

    async with asyncio.timeout(10):
        try:
            answer = await front.http.post("/events", content=endless())
            assert answer.status_code == 401
        except httpx.TransportError:  # The connection may be cut before all of the answer is read.
            pass
    assert not front.ingest.requests


async def test_the_token_and_the_request_id_go_along_and_forged_headers_do_not(front: Any) -> None:
    forged = {
        "X-User-Id": "root",
        "X-Organization-Id": "org-b",
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Whatever": "x",
        "Forwarded": "for=127.0.0.1",
        "X-Real-Ip": "127.0.0.1",
        "Cookie": "session=1",
        "Connection": "keep-alive, X-Secret-Hop",
        "X-Secret-Hop": "1",
        "Keep-Alive": "timeout=1",
        "Te": "trailers",
        "Proxy-Authorization": "Basic x",
        "Upgrade": "h2c",
    }
    token = front.token()

    await front.http.get(
        "/patients/p", headers={**forged, **token, "X-Request-Id": "mine-1", "Accept": "application/json"}
    )

    (request,) = front.claims.requests
    kept = {name.lower(): value for name, value in request.headers}
    assert kept.pop("host") == f"127.0.0.1:{front.claims.port}"
    assert len(kept.pop("traceparent")) == 55
    assert kept.pop("user-agent").startswith("python-httpx")
    assert kept == {"authorization": token["Authorization"], "x-request-id": "mine-1", "accept": "application/json"}


async def test_the_callers_trace_goes_on_in_the_upstream(front: Any) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"

    await front.get("/patients/p", traceparent=f"00-{trace}-b7ad6b7169203331-01", tracestate="a=b")

    (request,) = front.claims.requests
    assert request.header("traceparent").split("-")[1] == trace
    assert "b7ad6b7169203331" not in request.header("traceparent")
    assert request.header("tracestate") == "a=b"


async def test_the_request_id_comes_back_whoever_made_it(front: Any) -> None:
    front.claims.behave = _answer_with_ids

    named = await front.get("/patients/p", **{"X-Request-Id": "mine-1"})
    unnamed = await front.get("/patients/p")
    insane = await front.get("/patients/p", **{"X-Request-Id": "a b\tc"})

    assert named.headers.get_list("x-request-id") == ["mine-1"]
    assert unnamed.headers["x-request-id"] == front.claims.requests[1].header("x-request-id")
    assert insane.headers["x-request-id"] == front.claims.requests[2].header("x-request-id") != "a b\tc"


async def _answer_with_ids(_: Any, writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\nX-Request-Id: theirs\r\n\r\n"
        b'{"data":{}}'
    )


async def test_an_answer_comes_back_with_its_own_headers_only(front: Any, kit: Any) -> None:
    front.claims.behave = kit.answer(
        200,
        {"data": {"text": "é"}},
        headers=[
            ("ETag", '"1"'),
            ("Cache-Control", "no-store"),
            ("Connection", "keep-alive, X-Hop"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Server", "little/1.0"),
            ("Set-Cookie", "a=b"),
        ],
    )

    answer = await front.get("/patients/p")

    assert answer.json() == {"data": {"text": "é"}}
    assert answer.headers["etag"] == '"1"'
    assert answer.headers.get_list("cache-control") == ["no-store"]
    assert not {"x-hop", "keep-alive", "server", "set-cookie"} & set(answer.headers)


@pytest.mark.parametrize("status", [400, 403, 409, 413, 422, 429, 500, 503])
async def test_a_refusal_is_passed_on_as_it_is(front: Any, kit: Any, status: int) -> None:
    body = {"error": {"code": "some-code", "message": "m", "details": [{"path": "a", "rule": "b"}], "requestId": "r"}}
    front.ingest.behave = kit.answer(status, body, headers=[("Retry-After", "7"), ("RateLimit-Remaining", "0")])

    answer = await front.post("/events")

    assert (answer.status_code, answer.json()) == (status, body)
    assert (answer.headers["retry-after"], answer.headers["ratelimit-remaining"]) == ("7", "0")
    assert len(front.ingest.requests) == 1


@pytest.mark.parametrize("size", [0, 1, 65_535, 1_000_000, 8 * 1024 * 1024])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_arrives_byte_for_byte(front: Any, size: int, chunked: bool) -> None:
    body = bytes(n * 7 % 251 for n in range(min(size, 65_536))) * (size // 65_536 + 1)
    body = body[:size]

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, size, 50_000):
            yield body[start : start + 50_000]

    answer = await front.post("/events/batch", parts() if chunked else body, **{"Content-Type": "application/x-ndjson"})

    assert answer.status_code == 200
    (request,) = front.ingest.requests
    assert request.body == body
    assert request.header("content-type") == "application/x-ndjson"
    if not chunked:
        assert request.header("content-length") == str(size)


async def test_a_long_answer_flows_before_it_is_complete(front: Any) -> None:
    """3 MiB, of which the upstream holds back the end until the caller has the beginning."""
    item = b'"' + b"x" * 1022 + b'"'
    seen = asyncio.Event()

    async def long(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (b'{"data":[' + b",".join([item] * 1500), b"," + b",".join([item] * 1500) + b"]}"):
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()
            await seen.wait()
        writer.write(b"0\r\n\r\n")

    front.claims.behave = long
    received = b""
    async with front.http.stream("GET", "/patients/p/history", headers=front.token()) as answer:
        async for part in answer.aiter_bytes():
            received += part
            if len(received) > 300_000:
                seen.set()

    assert len(json.loads(received)["data"]) == 3000


async def test_head_is_get_without_the_body(front: Any) -> None:
    answer = await front.http.head("/patients/p", headers=front.token())

    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "12")
    assert front.claims.requests[0].method == "GET"


async def test_head_does_not_wait_for_a_body_without_end(front: Any) -> None:
    async def endless(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    front.claims.behave = endless
    async with asyncio.timeout(10):
        answer = await front.http.head("/patients/p", headers=front.token())

    assert (answer.status_code, answer.content) == (200, b"")


async def test_connections_to_upstreams_are_kept(front: Any) -> None:
    for _ in range(20):
        assert (await front.get("/patients/p")).status_code == 200

    assert front.claims.connections == 1


async def test_more_requests_at_once_than_connections_all_get_their_answer(kit: Any, issuer: Any, jwks: str) -> None:
    async with kit.running(issuer, jwks, connections_per_upstream=3) as front:
        answers = await asyncio.gather(*(front.get(f"/patients/{n}") for n in range(60)))

        assert {answer.status_code for answer in answers} == {200}
        assert sorted(int(r.target.rpartition("/")[2]) for r in front.claims.requests) == list(range(60))
