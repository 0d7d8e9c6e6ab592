"""`/claims/**`: as any other path, but for what goes on and on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from carebus_gateway.breaker import State

CLAIM = "0190b5c2-0000-7000-8000-000000000000"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/claims?status=pending&sort=-total&limit=5"),
        ("POST", "/claims"),
        ("POST", "/claims/bulk"),
        ("PATCH", "/claims/bulk"),
        ("GET", f"/claims/{CLAIM}"),
        ("PATCH", f"/claims/{CLAIM}"),
        ("GET", f"/claims/{CLAIM}/audit?cursor=x"),
        ("POST", f"/claims/{CLAIM}/payment"),
        ("GET", "/claims/dashboard"),
        ("GET", "/claims/changes"),
        ("GET", "/claims/export?format=csv"),
    ],
)
async def test_a_request_about_claims_reaches_claims_as_it_was_sent(front: Any, method: str, target: str) -> None:
    body = None if method == "GET" else b'{"a":1}'
    headers = {**front.token(), "Content-Type": "application/json", "If-Match": '"3"', "Idempotency-Key": "k-1"}

    answer = await front.http.request(method, target, content=body, headers=headers)

    assert answer.status_code == 200
    (request,) = front.claims.requests
    assert (request.method, request.target, request.body) == (method, target, body or b"")
    assert (request.header("If-Match"), request.header("Idempotency-Key")) == ('"3"', "k-1")


async def test_a_change_is_never_sent_twice(front: Any, kit: Any) -> None:
    front.claims.behave = kit.raw(then="close")

    answer = await front.http.patch(f"/claims/{CLAIM}", content=b"{}", headers=front.token())

    assert answer.status_code == 503
    assert len(front.claims.requests) == 1


@pytest.mark.parametrize("method", ["DELETE", "PUT"])
async def test_another_method_is_told_which_there_are(front: Any, method: str) -> None:
    answer = await front.http.request(method, f"/claims/{CLAIM}", headers=front.token())

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, PATCH")


async def test_nobody_passes_without_a_token(front: Any) -> None:
    for target in ("/claims", "/claims/changes", "/claims/export"):
        assert (await front.http.get(target)).status_code == 401
    assert not front.claims.connections


class Stream:
    """An upstream's stream whose parts a test gives out one by one; knows when its caller has gone."""

    def __init__(self, head: bytes = EVENTS) -> None:
        self.parts: asyncio.Queue[bytes] = asyncio.Queue()
        self.gone = asyncio.Event()
        self._head = head

    async def __call__(self, _: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(self._head)
        try:
            # A caller that has gone shows in what can be read, long before a write fails.
            reader = writer.transport.get_protocol()._stream_reader  # type: ignore[attr-defined]
            while not reader.at_eof() and not writer.is_closing():
                try:
                    async with asyncio.timeout(0.05):
                        writer.write(await self.parts.get())
                except TimeoutError:
                    pass
                await writer.drain()
        finally:
            self.gone.set()


async def test_a_stream_flows_event_by_event_and_longer_than_any_timeout(kit: Any, issuer: Any, jwks: str) -> None:
    stream = Stream()
    async with kit.running(issuer, jwks, claims_timeout="PT0.3S", stream_idle_timeout="PT1S") as front:
        front.claims.behave = stream
        async with asyncio.timeout(15), front.http.stream("GET", "/claims/changes", headers=front.token()) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            assert "content-length" not in answer.headers
            parts = answer.aiter_bytes()
            for seq in range(5):
                await asyncio.sleep(0.4)
                event = b"id: %d\ndata: {}\n\n" % seq
                stream.parts.put_nowait(chunk(event))
                assert await anext(parts) == event


async def test_the_place_to_resume_at_goes_along(front: Any, kit: Any) -> None:
    front.claims.behave = kit.raw(EVENTS, b"0\r\n\r\n")

    await front.get("/claims/changes", **{"Last-Event-ID": "41", "Accept": "text/event-stream"})

    assert front.claims.requests[0].header("Last-Event-ID") == "41"


async def test_a_silent_stream_is_cut_off(kit: Any, issuer: Any, jwks: str) -> None:
    stream = Stream()
    async with kit.running(issuer, jwks, stream_idle_timeout="PT0.3S") as front:
        front.claims.behave = stream
        with pytest.raises(Exception, match=r"incomplete|closed"):
            async with asyncio.timeout(10):
                await front.get("/claims/changes")
        async with asyncio.timeout(10):
            await stream.gone.wait()
        assert (await front.http.get("/health")).json()["data"]["breakers"]["claims"] == State.CLOSED.value


async def test_the_upstream_learns_that_a_caller_has_gone(front: Any) -> None:
    """Although nothing is being sent that could fail."""
    stream = front.claims.behave = Stream()
    async with front.http.stream("GET", "/claims/changes", headers=front.token()) as answer:
        stream.parts.put_nowait(chunk(b": here\n\n"))
        await anext(answer.aiter_bytes())
        assert not stream.gone.is_set()

    async with asyncio.timeout(10):
        await stream.gone.wait()


async def test_events_end_when_the_gateway_stops_and_an_export_is_finished(front: Any, kit: Any) -> None:
    events = front.claims.behave = Stream()
    async with asyncio.timeout(6), front.http.stream("GET", "/claims/changes", headers=front.token()) as followed:
        export = front.claims.behave = Stream(EVENTS.replace(b"text/event-stream", b"text/csv"))
        async with front.http.stream("GET", "/claims/export", headers=front.token()) as exported:
            front.stop.set()
            assert [part async for part in followed.aiter_bytes()] == []
            await events.gone.wait()
            export.parts.put_nowait(chunk(b"the rest") + b"0\r\n\r\n")
            assert [part async for part in exported.aiter_bytes()] == [b"the rest"]


async def test_a_refused_stream_is_a_refusal_like_any_other(front: Any, kit: Any) -> None:
    refused = {"error": {"code": "forbidden", "message": "m", "details": [], "requestId": "r"}}
    front.claims.behave = kit.answer(403, refused)

    answer = await front.get("/claims/changes")

    assert (answer.status_code, answer.json()) == (403, refused)


async def test_a_page_of_html_is_no_stream(front: Any, kit: Any) -> None:
    front.claims.behave = kit.answer(200, "<html>", content_type="text/html")

    assert (await front.get("/claims/export")).status_code == 502
    # And what streams only streams where the table says so.
    front.claims.behave = kit.raw(EVENTS, b"0\r\n\r\n")
    assert (await front.get("/claims")).status_code == 502


async def test_an_export_of_many_mebibytes_arrives_whole_with_its_headers(front: Any, kit: Any) -> None:
    rows = b"".join(b"%d,pending,136.80\r\n" % number for number in range(400_000))
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/csv; charset=utf-8\r\n"
        b'Content-Disposition: attachment; filename="claims.csv"\r\nTransfer-Encoding: chunked\r\n\r\n'
    )
    front.claims.behave = kit.raw(
        head, *(chunk(rows[at : at + 100_000]) for at in range(0, len(rows), 100_000)), b"0\r\n\r\n"
    )

    answer = await front.get("/claims/export?format=csv")

    assert answer.content == rows
    assert answer.headers["content-disposition"] == 'attachment; filename="claims.csv"'


async def test_an_export_that_breaks_off_breaks_off_for_the_caller_too(front: Any, kit: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    front.claims.behave = kit.raw(head, chunk(b"{}\n"))

    with pytest.raises(Exception, match=r"incomplete|closed"):
        await front.get("/claims/export")


async def test_streams_leave_the_connections_to_everybody_else(kit: Any, issuer: Any, jwks: str) -> None:
    async with kit.running(issuer, jwks, connections_per_upstream=1, streams_per_upstream=2) as front:
        front.claims.behave = Stream()
        async with (
            front.http.stream("GET", "/claims/changes", headers=front.token()) as first,
            front.http.stream("GET", "/claims/changes", headers=front.token()) as second,
        ):
            assert (first.status_code, second.status_code) == (200, 200)
            third = await front.get("/claims/changes")
            assert (third.status_code, third.headers["retry-after"]) == (503, "1")
            front.claims.behave = kit.answer()
            assert (await front.get("/claims")).status_code == 200
        async with asyncio.timeout(10):
            while (await front.get("/claims/changes")).status_code != 200:
                await asyncio.sleep(0.05)
