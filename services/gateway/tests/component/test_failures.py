from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import prometheus_client
import pytest
from structlog.testing import capture_logs

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LONG = b'{"data":["' + b"x" * 400_000


def sample(name: str, **labels: str) -> float:
    return prometheus_client.REGISTRY.get_sample_value(name, labels) or 0.0


async def test_an_upstream_that_is_away_is_unavailable(front: Any) -> None:
    await front.ingest.stop()

    answer = await front.post("/events")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("send", ["get", "post"])
async def test_an_upstream_that_does_not_answer_times_out(front: Any, kit: Any, send: str) -> None:
    front.claims.behave = front.ingest.behave = kit.raw(then="stall")
    began = time.monotonic()

    answer = await (front.get("/patients/p") if send == "get" else front.post("/events"))

    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "gateway-timeout")
    assert 0.4 < time.monotonic() - began < 3
    assert len(front.claims.requests) + len(front.ingest.requests) == 1


async def test_an_upstream_that_does_not_read_times_out(front: Any, kit: Any) -> None:
    front.ingest.hasty = True
    front.ingest.behave = kit.raw(then="stall")

    assert (await front.post("/events/batch", b"x" * 8_000_000)).status_code == 504


async def test_every_route_has_its_own_patience(front: Any, kit: Any) -> None:
    async def slow(request: Any, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.7)
        await kit.answer()(request, writer)

    front.ingest.behave = slow

    assert (await front.post("/events")).status_code == 504
    assert (await front.post("/events/batch")).status_code == 200


@pytest.mark.parametrize("dying", [[], [b"HTTP/1.1 2"]])
async def test_a_get_whose_connection_breaks_before_the_answer_is_sent_once_more(
    front: Any, kit: Any, dying: list[bytes]
) -> None:
    front.claims.script = [kit.raw(*dying)]
    assert (await front.get("/patients/p")).status_code == 200
    assert len(front.claims.requests) == 2

    front.claims.script = [kit.raw(*dying)] * 5
    assert (await front.get("/patients/p")).status_code == 503
    assert len(front.claims.requests) == 4


async def test_a_get_on_a_kept_connection_that_breaks_is_sent_once_more_and_not_twice(front: Any, kit: Any) -> None:
    assert (await front.get("/patients/p")).status_code == 200
    front.claims.requests.clear()
    front.claims.script = [kit.raw()] * 5

    assert (await front.get("/patients/p")).status_code == 503

    assert len(front.claims.requests) == 2


async def test_a_post_is_never_sent_again(front: Any, kit: Any) -> None:
    assert (await front.post("/events")).status_code == 200
    front.ingest.requests.clear()
    front.ingest.script = [kit.raw()]

    assert (await front.post("/events")).status_code == 503

    assert len(front.ingest.requests) == 1


@pytest.mark.parametrize(
    "nonsense",
    [
        [b"SSH-2.0-OpenSSH_9.9\r\n"],
        [b"HTTP/1.1 banana\r\n\r\n"],
        [HEAD + b"Content-Length: -5\r\n\r\n"],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"],
        [b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>"],
        [b'HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 11\r\n\r\n{"data":{}}'],
        [HEAD + b"Content-Length: 5\r\n\r\n<htm>"],
        [HEAD + b"Content-Length: 0\r\n\r\n"],
        [HEAD + b'Content-Length: 9\r\n\r\n{"da": 1}'],
        [HEAD + b'Content-Length: 10\r\n\r\n{"data": x'],
        [HEAD + b'Content-Length: 11\r\n\r\n{"data":[]]'],
        [HEAD + b"Content-Length: 2\r\n\r\n[]"],
        [HEAD + b'Content-Encoding: gzip\r\nContent-Length: 11\r\n\r\n{"data":{}}'],
        [
            HEAD.replace(b"200 OK", b"302 Found")
            + b'Location: http://example.org\r\nContent-Length: 11\r\n\r\n{"data":{}}'
        ],
        [HEAD.replace(b"200 OK", b"500 Oops") + b'Content-Length: 11\r\n\r\n{"data":{}}'],
        [HEAD.replace(b"200 OK", b"500 Oops") + b'Content-Length: 18\r\n\r\n{"detail":"stack"}'],
        [HEAD.replace(b"200 OK", b"502 Bad") + b"Content-Length: 400010\r\n\r\n" + LONG],
        # It dies in the middle of an answer of which nothing has gone out yet.
        [HEAD + b'Content-Length: 500\r\n\r\n{"data":'],
        [HEAD + b'Transfer-Encoding: chunked\r\n\r\n8\r\n{"data":\r\n'],
    ],
)
async def test_nonsense_from_an_upstream_is_a_bad_gateway(front: Any, kit: Any, nonsense: list[bytes]) -> None:
    front.claims.behave = kit.raw(*nonsense)

    answer = await front.get("/patients/p")

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "bad-gateway")
    assert answer.json()["error"]["requestId"] == answer.headers["x-request-id"]
    assert len(front.claims.requests) == 1


async def test_an_answer_that_stalls_times_out_while_nothing_has_gone_out(front: Any, kit: Any) -> None:
    front.claims.behave = kit.raw(HEAD + b'Content-Length: 500\r\n\r\n{"data":', then="stall")

    assert (await front.get("/patients/p")).status_code == 504


@pytest.mark.parametrize("then", ["close", "stall"])
async def test_an_answer_that_breaks_off_later_is_not_passed_off_as_complete(front: Any, kit: Any, then: str) -> None:
    front.claims.behave = kit.raw(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(LONG), LONG), then=then
    )

    with pytest.raises(httpx.RemoteProtocolError):
        await front.get("/patients/p")

    front.claims.behave = kit.answer()
    assert (await front.get("/patients/p")).status_code == 200


async def test_a_body_over_the_limit_is_refused_unread(front: Any) -> None:
    answer = await front.post("/events/batch", b"x" * (front.settings.max_body_bytes + 1))

    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload-too-large")
    assert front.ingest.connections == 0


async def test_a_chunked_body_over_the_limit_is_refused_when_it_gets_there(kit: Any, issuer: Any, jwks: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 50_000

    async with kit.running(issuer, jwks, max_body_bytes=1_000_000) as front:
        answer = await front.post("/events/batch", parts())

        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload-too-large")
        # The upstream never saw a complete request, and the breaker holds nothing against it.
        assert not front.ingest.requests
        assert (await front.get("/health")).json()["data"]["breakers"]["ingest"] == "closed"


@pytest.mark.parametrize("begun", [b"", b"x" * 100_000])
async def test_a_body_that_stalls_is_given_up(front: Any, begun: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    head = f"POST /events HTTP/1.1\r\nHost: x\r\nAuthorization: {front.token()['Authorization']}\r\n"
    writer.write(head.encode() + b"Content-Length: 200000\r\n\r\n" + begun)

    async with asyncio.timeout(10):
        assert b" 408 " in await reader.readline()
        await reader.read()
    writer.close()
    assert not front.ingest.requests


async def test_callers_that_go_away_are_not_held_against_the_upstream(front: Any) -> None:
    for _ in range(6):
        _, writer = await asyncio.open_connection("127.0.0.1", front.port)
        head = f"POST /events HTTP/1.1\r\nHost: x\r\nAuthorization: {front.token()['Authorization']}\r\n"
        writer.write(head.encode() + b"Content-Length: 200000\r\n\r\n" + b"x" * 100_000)
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.close()
        await writer.wait_closed()

    assert (await front.post("/events")).status_code == 200


async def test_an_upstream_may_refuse_a_body_before_it_has_read_it(front: Any, kit: Any) -> None:
    body = {"error": {"code": "payload-too-large", "message": "m", "details": [], "requestId": "r"}}
    front.ingest.hasty = True
    refuse = kit.answer(413, body, headers=[("Connection", "close")])

    async def hasty(request: Any, writer: asyncio.StreamWriter) -> None:
        await refuse(request, writer)
        await writer.drain()
        # As our services do: linger, so that the answer arrives although the body goes on.
        await asyncio.sleep(0.3)
        writer.close()

    front.ingest.behave = hasty

    answer = await front.post("/events/batch", b"x" * 4_000_000)

    assert (answer.status_code, answer.json()) == (413, body)


async def test_twenty_kilobytes_of_headers_are_too_many(front: Any) -> None:
    answer = await front.get("/patients/p", **{"X-Much": "x" * 20_000})

    assert answer.status_code == 431
    assert not front.claims.requests


@pytest.mark.parametrize("query", ["limit=1&limit=2", "type=%FF", "type=%zz", "a=%"])
async def test_a_query_that_nobody_could_read_is_refused_here(front: Any, query: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    head = f"GET /patients/p?{query} HTTP/1.1\r\nHost: x\r\nAuthorization: {front.token()['Authorization']}\r\n\r\n"
    writer.write(head.encode())

    assert b" 400 " in await reader.readline()
    writer.close()
    assert not front.claims.requests


async def test_the_breaker_opens_and_leaves_the_upstream_alone(front: Any, kit: Any) -> None:
    front.ingest.behave = kit.raw(b"HTTP/1.1 banana\r\n\r\n")
    transitions = sample("carebus_breaker_transitions_total", upstream="ingest", to="open")
    for _ in range(3):
        assert (await front.post("/events")).status_code == 502

    answer = await front.post("/events")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert len(front.ingest.requests) == 3
    assert sample("carebus_breaker_open", upstream="ingest") == 1
    assert sample("carebus_breaker_transitions_total", upstream="ingest", to="open") == transitions + 1
    # The others are not in it with them.
    assert (await front.get("/patients/p")).status_code == 200


async def test_the_breaker_closes_by_itself_once_the_upstream_is_back(front: Any) -> None:
    await front.ingest.stop()
    for _ in range(4):
        assert (await front.post("/events")).status_code == 503
    await front.ingest.start()

    async with asyncio.timeout(10):
        while (await front.post("/events")).status_code != 200:
            await asyncio.sleep(0.05)

    assert len(front.ingest.requests) == 1
    assert sample("carebus_breaker_open", upstream="ingest") == 0
    assert (await front.post("/events")).status_code == 200


async def test_timeouts_open_the_breaker_so_that_callers_stop_waiting(front: Any, kit: Any) -> None:
    front.claims.behave = kit.raw(then="stall")
    answers = await asyncio.gather(*(front.get("/patients/p") for _ in range(3)))
    assert [answer.status_code for answer in answers] == [504] * 3
    began = time.monotonic()

    assert (await front.get("/patients/p")).status_code == 503
    assert time.monotonic() - began < 0.4


async def test_refusals_do_not_open_the_breaker(front: Any, kit: Any) -> None:
    body = {"error": {"code": "internal", "message": "m", "details": [], "requestId": "r"}}
    front.ingest.behave = kit.answer(500, body)

    assert [(await front.post("/events")).status_code for _ in range(10)] == [500] * 10
    assert len(front.ingest.requests) == 10


async def test_health_is_good_when_everybodys_is(front: Any) -> None:
    answer = await front.http.get("/health")

    assert answer.status_code == 200
    assert answer.json() == {
        "data": {
            "status": "ok",
            "checks": {"ingest": "ok", "processor": "ok", "claims": "ok"},
            "breakers": {"ingest": "closed", "processor": "closed", "claims": "closed"},
        }
    }


async def test_health_says_who_is_not_well_and_nothing_of_where_they_are(front: Any, kit: Any) -> None:
    body = {"error": {"code": "unavailable", "message": "mongo-7.internal", "details": [], "requestId": "r"}}
    front.claims.behave = kit.answer(503, body)
    front.processor.behave = kit.raw(then="stall")
    await front.ingest.stop()
    for _ in range(3):
        await front.post("/events")
    began = time.monotonic()

    answer = await front.http.get("/health")

    assert answer.status_code == 503
    assert answer.json()["error"]["details"] == [
        {"path": "ingest", "rule": "away", "breaker": "open"},
        {"path": "processor", "rule": "no answer in time", "breaker": "closed"},
        {"path": "claims", "rule": "reports itself unhealthy", "breaker": "closed"},
    ]
    assert "127.0.0.1" not in answer.text
    assert "internal" not in answer.text
    assert time.monotonic() - began < 2


async def test_a_canary_stays_out_of_logs_metrics_and_refusals(front: Any, kit: Any) -> None:
    name = "Desdemona-Quillfeather"
    target = f"/patients/{name}%0D%0Ax/history?type={name}"
    refusals = []
    with capture_logs() as logs:
        for behaviour in (
            kit.raw(b"HTTP/1.1 banana " + name.encode() + b"\r\n\r\n"),
            kit.answer(200, f"<html>{name}</html>"),
            kit.raw(),
            kit.raw(HEAD + b"X-Name: " + name.encode() + b"\r\nContent-Length: 500\r\n\r\n" + name.encode()),
            kit.answer(),
        ):
            front.claims.behave = behaviour
            refusals.append(await front.get(target))
            refusals.append(await front.get(target, **{"X-Name": name}))
        refusals.append(await front.post("/events", f'{{"patientId": "{name}"}}'.encode()))
        refusals.append(await front.get(f"/{name}"))

    assert not [answer.text for answer in refusals if name in answer.text]
    assert name not in repr(logs)
    assert name not in prometheus_client.generate_latest().decode()


async def test_a_caller_that_stops_reading_is_cut_off(kit: Any, issuer: Any, jwks: str) -> None:
    part = b'{"data":["' + b"x" * 30_000_000 + b'"]}'
    async with kit.running(issuer, jwks, reading_timeout="PT0.5S") as front:
        front.claims.behave = kit.raw(HEAD + b"Content-Length: %d\r\n\r\n" % len(part), part)
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(caller, ("127.0.0.1", front.port))
            head = f"GET /patients/p HTTP/1.1\r\nHost: x\r\nAuthorization: {front.token()['Authorization']}\r\n\r\n"
            await loop.sock_sendall(caller, head.encode())
            with capture_logs() as logs:
                async with asyncio.timeout(15):
                    while not any(entry["event"] == "answer-cut-off" for entry in logs):
                        await asyncio.sleep(0.05)
