"""Ports, the management listener, and a stop that answers what is on its way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from carebus_common.http import create_app, server
from carebus_common.settings import HttpSettings
from carebus_common.testing.connections import Serving, connected, serving

# --- ports and the management listener -----------------------------------------------------------------------------


async def test_metrics_and_liveness_have_a_port_of_their_own(served: Serving) -> None:
    assert served.listening.management_port != served.port
    async with connected(served.port) as public:
        await public.get()
        assert (await public.get("/metrics")).status == 404
        assert (await public.get("/health/live")).status == 404
    async with connected(served.listening.management_port) as management:
        metrics = await management.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain; version=")
        assert b'carebus_http_requests_total{method="GET",route="/fast",status="200"}' in metrics.body
        assert b'route="unmatched",status="404"' in metrics.body
        assert (await management.get("/health/live")).body == b'{"data":{"status":"ok"}}'
        assert (await management.get("/fast")).status == 404
        await management.send(b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        assert (await management.answer()).status == 404


async def test_two_servers_share_a_port_and_a_management_port_is_not_shared(app: FastAPI, served: Serving) -> None:
    async with serving(app, port=served.port) as second:
        assert second.port == served.port
    with pytest.raises(OSError, match="in use"):
        async with serving(app, management_port=served.listening.management_port):
            pass


async def test_a_port_taken_by_somebody_else_is_an_error(app: FastAPI) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            async with serving(app, port=taken.getsockname()[1]):
                pass


async def test_a_raw_app_is_served_with_its_lifespan() -> None:
    seen: list[str] = []

    async def raw(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                seen.append(message["type"])
                await send({"type": "lifespan.startup.complete"})
            seen.append(message["type"])
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with serving(raw) as running, connected(running.port) as connection:
        assert (await connection.get()).status == 204
        assert seen == ["lifespan.startup"]
    assert seen == ["lifespan.startup", "lifespan.shutdown"]


async def test_an_app_that_does_not_start_stops_the_server() -> None:
    @asynccontextmanager
    async def broken(_app: FastAPI) -> AsyncIterator[None]:
        if _app.version:
            raise ValueError("no")
        yield

    app = create_app(title="Broken", version="1", settings=HttpSettings(port=0), lifespan=broken)
    with pytest.raises(RuntimeError, match="lifespan"):
        async with serving(app):
            pass


# --- stopping ------------------------------------------------------------------------------------------------------


async def test_a_request_in_progress_is_answered_and_its_connection_closed(app: FastAPI, served: Serving) -> None:
    async with connected(served.port) as connection:
        await connection.send(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(app.state.entered.wait(), 5)
        served.stop.set()
        await _refused(served.port)
        app.state.release.set()
        answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await connection.closed()
    await asyncio.wait_for(served.task, 5)


async def test_a_request_that_comes_while_stopping_on_an_open_connection_is_answered(
    app: FastAPI, served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_DRAIN_IDLE", timedelta(seconds=30))
    async with connected(served.port) as connection:
        assert "connection" not in (await connection.get()).headers
        served.stop.set()
        await _refused(served.port)
        answer = await connection.get()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await connection.closed()
    await asyncio.wait_for(served.task, 5)


async def test_an_idle_connection_does_not_hold_up_the_stop(app: FastAPI) -> None:
    patient = timedelta(seconds=30)
    async with serving(app, shutdown_timeout=patient) as running, connected(running.port) as connection:
        await connection.get()
        running.stop.set()
        await connection.closed()
        await asyncio.wait_for(running.task, 5)


async def test_a_connection_that_waits_to_be_accepted_is_served_before_the_stop(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel completes connections by itself; here it does while the loop is busy with being stopped."""
    monkeypatch.setattr(server, "_SO_ATTACH_FILTER", -1)
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as waiting:
        waiting.sendall(b"GET /fast HTTP/1.1\r\nhost: x\r\n\r\n")
        served.stop.set()
        await asyncio.wait_for(served.task, 5)
        assert waiting.recv(1000).startswith(b"HTTP/1.1 200 ")


async def test_a_request_that_does_not_end_is_cut_off_in_time(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    cut = timedelta(milliseconds=200)
    async with serving(app, shutdown_timeout=cut) as running, connected(running.port) as connection:
        await connection.send(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(app.state.entered.wait(), 5)
        running.stop.set()
        await asyncio.wait_for(running.task, 5)
        await connection.closed()
    assert "requests-cut-off" in caplog.text


async def test_the_management_listener_answers_until_the_end(app: FastAPI, served: Serving) -> None:
    async with connected(served.port) as connection:
        await connection.send(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(app.state.entered.wait(), 5)
        served.stop.set()
        await _refused(served.port)
        async with connected(served.listening.management_port) as management:
            assert (await management.get("/health/live")).status == 200
        app.state.release.set()
        assert (await connection.answer()).status == 200


async def test_cancelling_the_server_releases_its_ports(app: FastAPI) -> None:
    async with serving(app) as running:
        running.task.cancel()
        await asyncio.wait([running.task], timeout=5)
        await _refused(running.port)
        await _refused(running.listening.management_port)


async def _refused(port: int) -> None:
    """Wait until nobody accepts on the port."""
    async with asyncio.timeout(5):
        while True:
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 0.2)
            except ConnectionRefusedError:
                return
            except (ConnectionError, TimeoutError):
                continue
            writer.close()
            await asyncio.sleep(0.01)
