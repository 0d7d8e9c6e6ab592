"""An app behind the real server on a free port, spoken to byte by byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from starlette.types import ASGIApp

from carebus_common.http.server import Listening, serve
from carebus_common.settings import HttpSettings

__all__ = ["Answer", "Connection", "Serving", "connected", "serving"]


@dataclass(frozen=True)
class Answer:
    """A whole answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> Any:
        return json.loads(self.body)["error"]


class Connection:
    """One connection; every wait is bounded."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, *, timeout: float = 5, head: bool = False) -> Answer:  # noqa: ASYNC109
        async with asyncio.timeout(timeout):
            start, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
            }
            length = 0 if head else int(headers.get("content-length", 0))
            return Answer(int(start.split()[1]), headers, await self._reader.readexactly(length))

    async def get(self, path: str = "/fast") -> Answer:
        await self.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        return await self.answer()

    async def closed(self, *, timeout: float = 5) -> bytes:  # noqa: ASYNC109
        """Wait for the other side to close; returns what came before."""
        async with asyncio.timeout(timeout):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """A new connection to a local port."""
    connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield connection
    finally:
        await connection.close()


@dataclass
class Serving:
    """A running server: set `stop` to stop it; `task` ends once it has."""

    listening: Listening
    stop: asyncio.Event
    task: asyncio.Task[None]

    @property
    def port(self) -> int:
        return self.listening.port


@asynccontextmanager
async def serving(app: ASGIApp, **settings: Any) -> AsyncIterator[Serving]:
    """`app` behind the real server, with limits small enough for a test."""
    limits = HttpSettings(
        **{
            "port": 0,
            "max_header_bytes": 4096,
            "max_body_bytes": 10_000,
            "body_timeout": timedelta(milliseconds=300),
            "shutdown_timeout": timedelta(seconds=3),
            **settings,
        }
    )
    started: asyncio.Future[Listening] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.create_task(serve(app, limits, started=started.set_result, stop=stop))
    first: list[asyncio.Future[Any]] = [started, task]
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED, timeout=10)
    if task.done():
        await task
    try:
        yield Serving(started.result(), stop, task)
    finally:
        stop.set()
        await asyncio.wait([task], timeout=15)
        if not task.cancelled():
            task.result()
