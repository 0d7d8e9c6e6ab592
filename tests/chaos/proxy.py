"""A TCP proxy between the services and a part: it delays, swallows, cuts, and breaks an idempotent producer."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Proxy"]

Fault = Literal["none", "blackhole", "half-open", "refuse"]
Read = Callable[[asyncio.StreamReader], Awaitable[bytes]]

_PRODUCE = 0
_HOST = "127.0.0.1"


@dataclass(eq=False)
class _Link:
    """A client's connection and ours to the part. `produces`: correlation ids of produce requests under way."""

    client: asyncio.StreamWriter
    part: asyncio.StreamWriter
    produces: set[int] = field(default_factory=set)


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes on to `upstream`; with `kafka`, frame by frame."""

    def __init__(self, upstream: int, *, kafka: bool = False) -> None:
        self.upstream = upstream
        self.port = 0
        self.delay = 0.0
        # So many produce requests are stored by the broker and answered with this error.
        self.failing_produces = 0
        self.produce_error = 0
        self.failed_produces = 0
        self._kafka = kafka
        self._fault: Fault = "none"
        self._passing = asyncio.Event()
        self._answering = asyncio.Event()
        self._links: set[_Link] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._accepting: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.set("none")

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, _HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)

    def set(self, fault: Fault) -> None:
        """`blackhole`: nothing passes, connections stay; `half-open`: answers are swallowed until the end of it;
        `refuse`: connections are cut and new ones closed."""
        self._fault = fault
        for event, passes in ((self._passing, fault != "blackhole"), (self._answering, fault in ("none", "refuse"))):
            event.set() if passes else event.clear()
        if fault == "refuse":
            self.cut()

    @asynccontextmanager
    async def faulty(self, fault: Fault) -> AsyncIterator[None]:
        """The fault for as long as the block lasts; afterwards the connections it has spoilt are cut."""
        self.set(fault)
        try:
            yield
        finally:
            self.cut()
            self.set("none")

    def cut(self) -> None:
        """Reset every connection."""
        for link in list(self._links):
            link.client.transport.abort()
            link.part.transport.abort()

    def fail_produces(self, count: int, error: int) -> None:
        """Let the broker store the next `count` produce requests and answer them with Kafka's error code."""
        self.failing_produces, self.produce_error = count, error

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._accepting.add(task)
        try:
            await self._pass_on(reader, writer)
        finally:
            self._accepting.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._fault == "refuse":
            writer.transport.abort()
            return
        try:
            part_reader, part = await asyncio.open_connection(_HOST, self.upstream)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, part)
        self._links.add(link)
        pumps = {
            asyncio.create_task(self._requests(link, reader)),
            asyncio.create_task(self._answers(link, part_reader)),
        }
        self._pumps |= pumps
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.transport.abort()
            part.transport.abort()
            self._links.discard(link)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._pumps -= pumps

    async def _requests(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while data := await self._read(reader):
                await self._passing.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                if self._kafka and struct.unpack_from(">h", data, 4)[0] == _PRODUCE:
                    link.produces.add(struct.unpack_from(">i", data, 8)[0])
                link.part.write(data)
                await link.part.drain()

    async def _answers(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while data := await self._read(reader):
                await self._passing.wait()
                await self._answering.wait()
                if link.produces:
                    data = self._maybe_failed(link, data)
                link.client.write(data)
                await link.client.drain()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        if not self._kafka:
            return await reader.read(256 * 1024)
        size = await reader.readexactly(4)
        return size + await reader.readexactly(struct.unpack(">i", size)[0])

    def _maybe_failed(self, link: _Link, data: bytes) -> bytes:
        correlation = struct.unpack_from(">i", data, 4)[0]
        if correlation not in link.produces:
            return data
        link.produces.discard(correlation)
        if self.failing_produces <= 0:
            return data
        self.failing_produces -= 1
        self.failed_produces += 1
        return with_produce_error(data, self.produce_error)


def with_produce_error(frame: bytes, error: int) -> bytes:
    """A produce response (up to version 8) in which the first partition has this error code."""
    # size, correlation id, number of topics, [topic, number of partitions, [partition, error code, ...
    place = 4 + 4 + 4
    place += 2 + struct.unpack_from(">h", frame, place)[0] + 4 + 4
    return frame[:place] + struct.pack(">h", error) + frame[place + 2 :]
