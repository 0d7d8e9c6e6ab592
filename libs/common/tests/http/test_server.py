"""What happens on the connection itself, against the real server."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest

from carebus_common.http import protocol
from carebus_common.testing.connections import Connection, Serving, connected

CANARY = "Jane Canary"
BODY_TIMEOUT = 0.3  # as the fixture `served` has it


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /notes HTTP/1.1", "host: x", "content-type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


NOTE = b'{"text": "abc"}'


# --- heads ---------------------------------------------------------------------------------------------------------


async def test_a_connection_serves_many_requests(connection: Connection) -> None:
    for _ in range(3):
        answer = await connection.get()
        assert (answer.status, answer.body) == (200, b'{"data":"fast"}')
    assert "server" not in answer.headers
    assert "date" in answer.headers


async def test_headers_over_the_limit_are_refused(connection: Connection) -> None:
    await connection.send(b"GET /fast HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 20_000 + b"\r\n\r\n")
    answer = await connection.answer()
    assert answer.status == 431
    assert answer.error()["code"] == "headers-too-large"
    assert answer.error()["requestId"] == answer.headers["x-request-id"]


async def test_headers_that_never_end_are_refused_before_they_fill_the_memory(connection: Connection) -> None:
    await connection.send(b"GET /fast HTTP/1.1\r\nhost: x\r\n")
    answer = asyncio.create_task(connection.answer())
    sent = 0
    while not answer.done() and sent < 100_000:
        try:
            await connection.send(b"x-a: " + b"a" * 93 + b"\r\n")
        except ConnectionError:
            break
        sent += 100
        await asyncio.sleep(0)
    assert (await answer).error()["code"] == "headers-too-large"
    await connection.closed()


async def test_a_header_name_that_never_ends_is_refused(connection: Connection) -> None:
    await connection.send(b"GET /fast HTTP/1.1\r\n")
    await connection.send(b"x" * 5000)
    assert (await connection.answer()).status == 431


async def test_the_size_of_earlier_requests_does_not_count(connection: Connection) -> None:
    for _ in range(5):
        await connection.send(b"GET /fast HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 3000 + b"\r\n\r\n")
        assert (await connection.answer()).status == 200


async def test_a_head_in_small_pieces_is_read(connection: Connection) -> None:
    for byte in b"GET /fast HTTP/1.1\r\nhost: x\r\n\r\n":
        await connection.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await connection.answer()).status == 200


async def test_a_head_that_stalls_is_answered_and_closed(connection: Connection) -> None:
    began = time.monotonic()
    await connection.send(b"GET /fast HTTP/1.1\r\nhost")
    answer = await connection.answer()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    await connection.closed()
    assert time.monotonic() - began < 3


async def test_a_later_head_that_stalls_is_answered_and_closed_too(connection: Connection) -> None:
    await connection.get()
    began = time.monotonic()
    await connection.send(b"GET /fast HTTP/1.1\r\nhost")
    assert (await connection.answer()).status == 408
    await connection.closed()
    assert time.monotonic() - began < 3


async def test_a_connection_may_idle_longer_than_a_request_may_take(connection: Connection) -> None:
    await connection.get()
    with pytest.raises(TimeoutError):
        await connection.closed(timeout=3 * BODY_TIMEOUT)
    assert (await connection.get()).status == 200


async def test_a_head_that_drips_is_closed(connection: Connection) -> None:
    began = time.monotonic()
    try:
        for byte in b"GET /fast HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 3000:
            await connection.send(bytes([byte]))
            await asyncio.sleep(0.02)
    except ConnectionError:
        pass
    await connection.closed()
    assert time.monotonic() - began < 3


async def test_a_connection_that_says_nothing_is_closed(connection: Connection) -> None:
    assert await connection.closed() == b""


async def test_line_breaks_instead_of_a_request_are_closed(connection: Connection) -> None:
    began = time.monotonic()
    try:
        while time.monotonic() - began < 3:
            await connection.send(b"\r\n")
            await asyncio.sleep(0.02)
    except ConnectionError:
        pass
    await connection.closed()
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE\r\n\r\n",
        b"GET /f\xc3\xa9 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /a\x00b HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET /fast HTTP/9.9\r\nhost: x\r\n\r\n",
        b"GET /fast HTTP/1.1\r\nhost : x\r\n\r\n",
        b"GET /fast HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /fast HTTP/1.1\r\nx-a: a\x00b\r\n\r\n",
        b"POST /notes HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /notes HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"POST /notes HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /notes HTTP/1.1\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ],
    ids=lambda value: repr(value[:60]),
)
async def test_what_is_no_http_is_refused_in_the_envelope(connection: Connection, request_bytes: bytes) -> None:
    await connection.send(request_bytes)
    answer = await connection.answer()
    assert answer.status == 400
    assert answer.error()["code"] == "invalid-request"
    assert answer.error()["requestId"] == answer.headers["x-request-id"]
    await connection.closed()


async def test_an_upgrade_is_ignored(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    await connection.send(b"GET /fast HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
    assert (await connection.answer()).status == 200
    assert caplog.text == ""


async def test_a_method_unknown_to_the_path_is_refused(connection: Connection) -> None:
    await connection.send(b"TRACE /fast HTTP/1.1\r\nhost: x\r\nx-secret: 1\r\n\r\n")
    answer = await connection.answer()
    assert answer.status == 405
    assert b"x-secret" not in answer.body


async def test_head_gets_no_body(connection: Connection) -> None:
    await connection.send(b"HEAD /fast HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = await connection.answer(head=True)
    assert (answer.status, answer.headers["content-length"]) == (200, "15")
    assert (await connection.get()).status == 200


@pytest.mark.parametrize("name", ["x-forwarded-for", "x-real-ip", "forwarded", "x-forwarded-proto", "x-forwarded-host"])
async def test_forwarding_headers_have_no_effect(connection: Connection, name: str) -> None:
    await connection.send(f"GET /client HTTP/1.1\r\nhost: x\r\n{name}: https\r\n\r\n".encode())
    assert (await connection.answer()).body == b'{"data":["127.0.0.1","http"]}'


# --- bodies --------------------------------------------------------------------------------------------------------


async def test_a_body_is_read(connection: Connection) -> None:
    await connection.send(post(NOTE, f"content-length: {len(NOTE)}"))
    assert (await connection.answer()).body == b'{"data":3}'


async def test_a_client_that_waits_for_permission_gets_it(connection: Connection) -> None:
    await connection.send(post(b"", f"content-length: {len(NOTE)}", "expect: 100-continue"))
    assert (await connection.answer()).status == 100
    await connection.send(NOTE)
    assert (await connection.answer()).status == 200


async def test_an_announced_body_over_the_limit_is_refused_before_it_comes(connection: Connection) -> None:
    await connection.send(post(b"", "content-length: 1000000", "expect: 100-continue"))
    answer = await connection.answer()
    assert (answer.status, answer.error()["code"]) == (413, "payload-too-large")


async def test_a_chunked_body_over_the_limit_is_refused_though_it_goes_on(connection: Connection) -> None:
    await connection.send(post(b"", "transfer-encoding: chunked"))
    chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
    for _ in range(20):
        await connection.send(chunk)
    answer = await connection.answer()
    assert (answer.status, answer.error()["code"]) == (413, "payload-too-large")


async def test_a_body_that_ends_after_its_refusal_leaves_the_connection_usable(connection: Connection) -> None:
    await connection.send(post(b" " * 20_000, "content-length: 20000"))
    assert (await connection.answer()).status == 413
    assert (await connection.get()).status == 200


async def test_a_body_that_goes_on_after_its_refusal_is_cut_off(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_LINGER", timedelta(milliseconds=100))
    await connection.send(post(b"", "content-length: 1000000000"))
    assert (await connection.answer()).status == 413
    began = time.monotonic()
    try:
        while time.monotonic() - began < 3:
            await connection.send(b" " * 1000)
            await asyncio.sleep(0.01)
    except ConnectionError:
        pass
    await connection.closed()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("part", [b"", NOTE[:4]])
@pytest.mark.parametrize("how", [f"content-length: {len(NOTE)}", "transfer-encoding: chunked"])
async def test_a_body_that_stalls_is_answered_and_the_connection_closed(
    connection: Connection, part: bytes, how: str
) -> None:
    began = time.monotonic()
    if "chunked" in how and part:
        part = b"4\r\n" + part + b"\r\n"
    await connection.send(post(part, how))
    answer = await connection.answer()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert answer.error()["code"] == "request-timeout"
    await connection.closed()
    assert time.monotonic() - began < 3


async def test_a_broken_chunk_is_refused(connection: Connection) -> None:
    await connection.send(post(b"zz\r\n", "transfer-encoding: chunked"))
    assert b" 400 " in await connection.closed()


async def test_a_caller_who_leaves_in_the_middle_of_a_body_is_no_error(
    served: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(served.port) as leaving:
        await leaving.send(post(NOTE[:4], f"content-length: {len(NOTE)}"))
    async with connected(served.port) as staying:
        assert (await staying.get()).status == 200
    assert caplog.text == ""


async def test_a_bug_after_the_answer_began_cuts_it_off(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    await connection.send(b"GET /late-bug HTTP/1.1\r\nhost: x\r\n\r\n")
    received = await connection.closed()
    assert b"half" in received
    assert not received.endswith(b"0\r\n\r\n")
    assert CANARY not in caplog.text


async def test_pipelined_requests_are_answered_in_order(connection: Connection) -> None:
    one = post(NOTE, f"content-length: {len(NOTE)}")
    await connection.send(one + b"GET /fast HTTP/1.1\r\nhost: x\r\n\r\n" + one)
    assert [(await connection.answer()).body for _ in range(3)] == [b'{"data":3}', b'{"data":"fast"}', b'{"data":3}']
