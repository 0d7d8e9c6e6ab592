"""uvicorn's HTTP protocol, with the ends it leaves open closed.

- A request's head is bounded in size and time. uvicorn hands a head to the app only when it is complete, so an app
  cannot refuse one that never ends.
- A refusal of something that is no HTTP comes in the envelope.
- An answer is written at once and not in two pieces.
- A body that goes on after its answer (as after a 413) is read for a moment, so that the sender gets to see the
  answer, and then cut off.
- Stopping answers what is on its way: connections close after their answer or once they idle, not before.
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from carebus_common.errors import CarebusError, HeadersTooLarge, InvalidRequest, RequestTimeout
from carebus_common.http.envelopes import error_response

__all__ = ["BoundedProtocol", "ServerConfig"]

_LINGER: Final = timedelta(seconds=2)


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration and what `BoundedProtocol` needs; `draining` is set while the server stops."""

    def __init__(self, app: Any, *, max_header_bytes: int, head_timeout: timedelta, **settings: Any) -> None:
        super().__init__(app, **settings)
        self.max_header_bytes = max_header_bytes
        self.head_timeout = head_timeout
        self.draining = False


class _Joined:
    """A transport that writes what one turn of the loop produces at once.

    uvicorn writes an answer's head and its body apart, and uvloop makes a system call of each write, which wakes
    the other side twice: a sixth of what a small answer costs.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting:
            joined = b"".join(self._waiting)
            self._waiting.clear()
            self._transport.write(joined)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    config: ServerConfig

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]
        # Between messages and in a head `_in_head` holds; `_begun` only once something of a message came.
        self._in_head = True
        self._begun = False
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._arm(self.config.head_timeout, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            # The end of a message sets this back: of a head that begins behind it one read at most is not counted.
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        if self._head_bytes > self.config.max_header_bytes:
            self._head_is_too_large()
        elif self._timer is None and (self._begun or not self._is_busy()):
            self._arm(self.config.head_timeout, self._head_is_late)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = True

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head = False
        self._disarm()
        if self.config.draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._begun = False
        self._head_bytes = 0
        self._disarm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and not self.transport.is_closing():
            self._arm(_LINGER, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest("This is not HTTP as the standard has it."))

    def _unsupported_upgrade_warning(self) -> None:
        """Upgrades are ignored, as the standard allows; a line in the log for each would be the caller's to write."""

    def shutdown(self) -> None:
        self.drain()

    def drain(self) -> None:
        """Close after the answer in progress; one whose headers went out without saying so keeps its connection."""
        if self._is_busy() and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def close_if_idle(self) -> None:
        """Close unless a request is in progress or on its way in."""
        if not self._is_busy() and self._in_head and not self._begun:
            self.transport.close()

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _head_is_late(self) -> None:
        self._timer = None
        if self._is_busy():
            self._arm(self.config.head_timeout, self._head_is_late)
        elif self._begun:
            self._refuse(RequestTimeout("The request was not complete in time."))
        else:
            self.transport.close()

    def _head_is_too_large(self) -> None:
        if self._is_busy():
            self.transport.close()  # an answer is being written: there is no place for another
        else:
            self._refuse(HeadersTooLarge(f"The headers exceed {self.config.max_header_bytes} bytes."))

    def _arm(self, delay: timedelta, callback: Any) -> None:
        self._disarm()
        self._timer = self.loop.call_later(delay.total_seconds(), callback)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, error: CarebusError) -> None:
        """Answer on the connection itself, where no request exists yet, and close it."""
        status, headers, body = error_response(error, os.urandom(16).hex())
        lines = [STATUS_LINE[status], *(name + b": " + value + b"\r\n" for name, value in headers)]
        if not any(name == b"connection" for name, _ in headers):
            lines.append(b"connection: close\r\n")
        self.transport.write(b"".join([*lines, b"\r\n", body]))
        self.transport.close()
