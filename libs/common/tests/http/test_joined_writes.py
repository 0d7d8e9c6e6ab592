"""An answer leaves in one piece: its head and its body are one write."""

from __future__ import annotations

import asyncio
from asyncio import selector_events
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from carebus_common.http.protocol import _Joined
from carebus_common.testing.connections import connected, serving


async def answering(scope: Scope, _: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"body"})


async def test_head_and_body_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    transport: Any = selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    write = transport.write

    def recorded(self: Any, data: bytes) -> None:
        written.append(bytes(data))
        write(self, data)

    monkeypatch.setattr(transport, "write", recorded)
    async with serving(answering) as server, connected(server.port) as connection:
        for _ in range(2):
            assert (await connection.get()).body == b"body"
    answers = [data for data in written if data.startswith(b"HTTP/1.1 200")]
    assert len(answers) == 2
    assert all(data.endswith(b"\r\n\r\nbody") for data in answers)


async def test_what_waits_is_written_before_the_connection_closes() -> None:
    done: list[object] = []

    class Transport:
        def write(self, data: bytes) -> None:
            done.append(data)

        def close(self) -> None:
            done.append("closed")

        def is_closing(self) -> bool:
            return "closed" in done

    joined = _Joined(Transport(), asyncio.get_running_loop())  # type: ignore[arg-type]
    joined.write(b"a")
    joined.write(b"b")
    assert done == []
    await asyncio.sleep(0)
    joined.write(b"c")
    joined.close()
    await asyncio.sleep(0)
    assert done == [b"ab", b"c", "closed"]
    assert joined.is_closing()
