"""SIGTERM under load loses no request: a process with the real server on uvloop, and clients that count."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

PROGRAM = """
import asyncio, sys
from carebus_common import logging
from carebus_common.http import Data, create_app
from carebus_common.http.server import run, serve
from carebus_common.settings import HttpSettings

settings = HttpSettings(port=int(sys.argv[1]))
logging.configure(settings, service="example")
app = create_app(title="Example", version="1", settings=settings)

@app.get("/fast")
async def fast() -> Data[int]:
    return Data(data=1)

@app.get("/slow")
async def slow() -> Data[int]:
    await asyncio.sleep(0.03)
    return Data(data=1)

@app.get("/endless")
async def endless() -> Data[int]:
    print("entered", flush=True)
    await asyncio.Event().wait()
    return Data(data=1)

async def main() -> None:
    await serve(app, settings, started=lambda ports: print(ports.port, flush=True))
    print("closed", type(asyncio.get_running_loop()).__module__, flush=True)

run(main())
"""


@dataclass
class Tally:
    answered: int = 0
    lost: list[str] = field(default_factory=list)


@asynccontextmanager
async def process(port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(port), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert started.stdout is not None
    try:
        yield started, int(await asyncio.wait_for(started.stdout.readline(), 30))
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def client(port: int, path: str, tally: Tally, *, keep_alive: bool, end: asyncio.Event) -> None:
    """Asks again and again until nobody listens: a request that was sent and not answered is lost."""
    request = f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter | None = None
    while not end.is_set():
        if writer is None:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            assert b" 200 " in head.partition(b"\r\n")[0]
            tally.answered += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            tally.lost.append(repr(error))
            return
        if not keep_alive or b"connection: close" in head:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()


@pytest.mark.parametrize("keep_alive", [True, False], ids=["kept connections", "a connection per request"])
async def test_no_request_is_lost_when_a_server_is_told_to_stop_under_load(keep_alive: bool) -> None:
    tally, end = Tally(), asyncio.Event()
    async with process() as (server, port), asyncio.TaskGroup() as clients:
        for number in range(32):
            path = "/slow" if number % 2 else "/fast"
            clients.create_task(client(port, path, tally, keep_alive=keep_alive, end=end))
        await _until(lambda: tally.answered >= 300)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(server.wait(), 10) == 0
        assert time.monotonic() - began < 5
    assert tally.lost == []


async def test_no_request_is_lost_or_refused_when_another_server_shares_the_port() -> None:
    tally, end = Tally(), asyncio.Event()
    async with process() as (first, port), process(port) as (_second, _), asyncio.TaskGroup() as clients:
        running = [
            clients.create_task(client(port, "/slow", tally, keep_alive=bool(number % 2), end=end))
            for number in range(16)
        ]
        await _until(lambda: tally.answered >= 100)
        first.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(first.wait(), 10) == 0
        after = tally.answered
        await _until(lambda: tally.answered >= after + 100)
        assert not any(task.done() for task in running)
        end.set()
    assert tally.lost == []


async def test_what_follows_serving_runs_on_uvloop_after_the_signal() -> None:
    async with process() as (server, _port):
        server.send_signal(signal.SIGINT)
        out, _ = await asyncio.wait_for(server.communicate(), 10)
    assert out == b"closed uvloop\n"
    assert server.returncode == 0


async def test_a_second_signal_does_not_wait_for_what_is_in_flight() -> None:
    async with process() as (server, port):
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        assert server.stdout is not None
        assert await asyncio.wait_for(server.stdout.readline(), 10) == b"entered\n"
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)  # signals that arrive together are one
        server.send_signal(signal.SIGTERM)
        await asyncio.wait_for(server.wait(), 10)
        assert time.monotonic() - began < 5
        writer.close()


async def _until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
