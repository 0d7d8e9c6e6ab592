"""The fault proxy does to connections what it says."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from .proxy import Proxy, with_produce_error


@asynccontextmanager
async def echoing(*, kafka: bool = False) -> AsyncIterator[Proxy]:
    """A proxy in front of a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1], kafka=kafka)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
        server.close()


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        # The transport closes its socket in the next turn of the loop.
        await asyncio.sleep(0)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, within: float = 5) -> bytes:
    writer.write(b"hello")
    async with asyncio.timeout(within):
        return await reader.readexactly(5)


async def test_it_passes_on_what_it_gets() -> None:
    async with echoing() as proxy, connected(proxy) as connection:
        assert await answer(*connection) == b"hello"


@pytest.mark.parametrize("fault", ["blackhole", "half-open"])
async def test_nothing_is_answered_and_the_connection_stays_until_the_fault_ends(fault: str) -> None:
    async with echoing() as proxy, connected(proxy) as connection:
        async with proxy.faulty(fault):  # type: ignore[arg-type]
            with pytest.raises(TimeoutError):
                await answer(*connection, within=0.3)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await answer(*connection)
        async with connected(proxy) as another:
            assert await answer(*another) == b"hello"


async def test_refusing_cuts_connections_and_lets_no_new_one_through() -> None:
    async with echoing() as proxy, connected(proxy) as connection:
        assert await answer(*connection) == b"hello"
        async with proxy.faulty("refuse"):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await answer(*connection)
            async with connected(proxy) as another:
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await answer(*another)


async def test_it_delays() -> None:
    async with echoing() as proxy, connected(proxy) as connection:
        proxy.delay = 0.3
        began = asyncio.get_running_loop().time()
        assert await answer(*connection) == b"hello"
        assert asyncio.get_running_loop().time() - began >= 0.3


def produce_response(correlation: int, error: int) -> bytes:
    """Of one partition of one topic, as the broker writes it."""
    body = struct.pack(">ii", correlation, 1) + struct.pack(">h", 3) + b"t-1"
    body += struct.pack(">iihq", 1, 7, error, 1234)
    return struct.pack(">i", len(body)) + body


def test_a_produce_response_gets_the_error_and_stays_as_it_was_otherwise() -> None:
    assert with_produce_error(produce_response(5, 0), 45) == produce_response(5, 45)


async def test_only_so_many_produce_responses_fail() -> None:
    """The server echoes: a frame that is a produce request and, read as an answer, the one to it."""
    async with echoing(kafka=True) as proxy, connected(proxy) as (reader, writer):
        proxy.fail_produces(1, 45)
        # API 0 in version 0 with correlation id 0; or correlation id 0 and the topics, of which it says there are none.
        frame = produce_response(0, 0)
        frame = frame[:8] + struct.pack(">i", 0) + frame[12:]
        for number in range(2):
            writer.write(frame)
            async with asyncio.timeout(5):
                got = await reader.readexactly(len(frame))
            assert (got == frame) == (number == 1)
        assert proxy.failed_produces == 1
