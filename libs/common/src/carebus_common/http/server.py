"""Runs an ASGI app until the process is told to stop, with a listener of its own for metrics.

uvicorn does the work. What it leaves open is closed in `carebus_common.http.protocol`: heads without bound or end,
and requests lost while stopping. Forwarding headers are never trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import prometheus_client
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from carebus_common.errors import CarebusError, NotFound
from carebus_common.http.envelopes import error_response, json_response, send_response
from carebus_common.http.guards import check_headers, request_id_of
from carebus_common.http.protocol import BoundedProtocol, ServerConfig
from carebus_common.logging import get_logger
from carebus_common.settings import HttpSettings

__all__ = ["Listening", "run", "serve"]

_log = get_logger(__name__)
T = TypeVar("T")

# Longer than clients and balancers keep idle connections, so that it is they who close them.
_KEEP_ALIVE: Final = timedelta(seconds=75)
# How long a connection may idle while stopping, in case its next request is on its way.
_DRAIN_IDLE: Final = timedelta(seconds=0.5)


# A connection attempt that is not answered is repeated after a second and then refused, or taken by another process on
# the port; one that is answered and then finds the listener gone would be a lost request. So while stopping the kernel
# drops what opens a connection (SYN, bit 1 of byte 13 of a TCP header) for as long as handshakes in progress may take.
_HANDSHAKE: Final = timedelta(milliseconds=50)
_SO_ATTACH_FILTER: Final = 26
_INSTRUCTIONS: Final = ctypes.create_string_buffer(
    struct.pack("=HBBI", 0x30, 0, 0, 13)  # load byte 13
    + struct.pack("=HBBI", 0x45, 0, 1, 0x02)  # if SYN is set:
    + struct.pack("=HBBI", 0x06, 0, 0, 0)  # drop
    + struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF)  # else keep
)
_DROP_NEW_CONNECTIONS: Final = struct.pack("@HP", 4, ctypes.addressof(_INSTRUCTIONS))


@dataclass(frozen=True, slots=True)
class Listening:
    """The ports in use, once both listeners accept."""

    port: int
    management_port: int


async def serve(
    app: ASGIApp,
    settings: HttpSettings,
    *,
    started: Callable[[Listening], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve `app` until SIGTERM, SIGINT or `stop` (which the signals set too), then finish what is in flight.

    Returns once every connection is closed, within `settings.shutdown_timeout`; a second signal cuts that short.
    The app's lifespan runs around it. The management listener serves `/metrics` and `/health/live` on the same
    host and stays up to the end. Raises OSError if a port is taken. Several processes may serve one port: the
    kernel spreads connections over them.
    """
    stop = stop or asyncio.Event()
    with (
        contextlib.closing(_bound(settings.host, settings.port, shared=True)) as listener,
        contextlib.closing(_bound(settings.host, settings.management_port, shared=False)) as management_listener,
        _signals(stop) as forced,
    ):
        ports = Listening(listener.getsockname()[1], management_listener.getsockname()[1])
        management = _Server(_management(settings), settings, lifespan="off")
        server = _Server(app, settings, lifespan="auto")
        await management.start(management_listener)
        try:
            await server.start(listener)
            _log.info("listening", host=settings.host, port=ports.port, management_port=ports.management_port)
            if started is not None:
                started(ports)
            await stop.wait()
            _log.info("stopping")
            await server.drain(settings.shutdown_timeout, forced)
        finally:
            await server.close()
            await management.close()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a service's main coroutine on uvloop and return its result."""
    return uvloop.run(main)


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[asyncio.Event]:
    """Let SIGTERM and SIGINT set `stop`; a second one sets what this yields. Elsewhere than in the main thread
    signals stay as they are."""
    forced = asyncio.Event()
    loop = asyncio.get_running_loop()
    previous: dict[signal.Signals, Any] = {}

    def on_signal() -> None:
        (forced if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError, RuntimeError):
            handler = signal.getsignal(number)
            loop.add_signal_handler(number, on_signal)
            previous[number] = handler
    try:
        yield forced
    finally:
        for number, handler in previous.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """uvicorn without its signals, and with a shutdown that loses no request."""

    def __init__(self, app: ASGIApp, settings: HttpSettings, *, lifespan: str) -> None:
        self._config = ServerConfig(
            app,
            max_header_bytes=settings.max_header_bytes,
            head_timeout=settings.body_timeout,
            interface="asgi3",
            http=BoundedProtocol,
            ws="none",
            lifespan=lifespan,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(_KEEP_ALIVE.total_seconds()),
        )
        super().__init__(self._config)
        self._ticks: asyncio.Task[None] | None = None
        self._queue: socket.socket | None = None

    async def start(self, listener: socket.socket) -> None:
        """Start accepting. Raises RuntimeError if the app's lifespan does."""
        self._config.load()
        self.lifespan = self._config.lifespan_class(self._config)
        await self.on_tick(0)
        try:
            await self.startup(sockets=[listener])
        except SystemExit:
            raise RuntimeError("The app's lifespan failed to start; the log says why.") from None
        self._queue = listener.dup()
        self._queue.setblocking(False)
        self._ticks = asyncio.create_task(self.main_loop())

    async def drain(self, timeout: timedelta, forced: asyncio.Event) -> None:  # noqa: ASYNC109 - the contract
        """Accept no more, answer what comes on open connections and close each after its answer or when it idles."""
        loop = asyncio.get_running_loop()
        self._config.draining = True
        await self._stop_accepting(loop)
        began = loop.time()
        for connection in self._connections():
            connection.drain()
        while self.server_state.connections and loop.time() < began + timeout.total_seconds() and not forced.is_set():
            if loop.time() >= began + _DRAIN_IDLE.total_seconds():
                for connection in self._connections():
                    connection.close_if_idle()
            await asyncio.sleep(0.01)

    async def _stop_accepting(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the listener, but serve what the kernel had completed: its client has sent a request by now.

        The second descriptor keeps the queue alive while the loop lets go of the first.
        """
        if self._queue is None:
            return
        with contextlib.suppress(OSError):  # not Linux: a connection made in the last microseconds is reset
            self._queue.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _DROP_NEW_CONNECTIONS)
            await asyncio.sleep(_HANDSHAKE.total_seconds())
        with contextlib.closing(self._queue) as queue:
            for server in self.servers:
                server.close()
            waiting = list(_accepted(queue))
        self._queue = None
        for connection in waiting:
            await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> BoundedProtocol:
        return BoundedProtocol(self._config, self.server_state, self.lifespan.state)

    async def close(self) -> None:
        """Close whatever is left and run the app's lifespan to its end."""
        if self._ticks is None:
            return
        self._ticks.cancel()
        await asyncio.gather(self._ticks, return_exceptions=True)
        self._ticks = None
        for server in self.servers:
            server.close()
        if self._queue is not None:
            self._queue.close()
        left = list(self.server_state.tasks)
        if left:
            _log.warning("requests-cut-off", count=len(left))
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for connection in self._connections():
            connection.transport.abort()
        for server in self.servers:
            await server.wait_closed()
        await self.lifespan.shutdown()

    def _connections(self) -> list[BoundedProtocol]:
        return [c for c in self.server_state.connections if isinstance(c, BoundedProtocol)]


def _accepted(queue: socket.socket) -> Iterator[socket.socket]:
    with contextlib.suppress(OSError):  # BlockingIOError: none is waiting
        while True:
            yield queue.accept()[0]


def _management(settings: HttpSettings) -> ASGIApp:
    """`/metrics` in Prometheus' text format and `/health/live`, which says only that the process runs."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        request_id = request_id_of(scope)
        try:
            check_headers(scope, settings.max_header_bytes)
            if scope["method"] not in ("GET", "HEAD"):
                raise NotFound("There is nothing here.")
            if scope["path"] == "/metrics":
                body = prometheus_client.generate_latest()
                headers = [
                    (b"content-type", prometheus_client.CONTENT_TYPE_LATEST.encode()),
                    (b"content-length", b"%d" % len(body)),
                ]
                await send_response(send, (200, headers, body))
            elif scope["path"] == "/health/live":
                await send_response(send, json_response(200, b'{"data":{"status":"ok"}}', request_id))
            else:
                raise NotFound("There is nothing here.")
        except CarebusError as error:
            await send_response(send, error_response(error, request_id))

    return app
