"""Little upstreams that do as they are told, and the gateway on a real socket before them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

import httpx
import pytest

from carebus_common.auth import TokenVerifier
from carebus_common.http.server import Listening, serve
from carebus_common.jwks import key_source
from carebus_common.testing.tokens import Issuer
from carebus_gateway.app import Gateway
from carebus_gateway.proxy import Upstream, client_session
from carebus_gateway.routes import urls_of
from carebus_gateway.settings import Settings


@dataclass
class Request:
    """What an upstream was sent."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def answer(
    status: int = 200, body: Any = None, *, headers: Iterable[tuple[str, str]] = (), content_type: str | None = None
) -> Behaviour:
    """An ordinary answer; a body that is no text is sent as JSON."""

    async def behave(_: Request, writer: asyncio.StreamWriter) -> None:
        payload = (body if isinstance(body, str) else json.dumps({"data": {}} if body is None else body)).encode()
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(payload)}"]
        lines.append(f"Content-Type: {content_type or 'application/json'}")
        lines += [f"{name}: {value}" for name, value in headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)

    return behave


def raw(*parts: bytes, then: str = "close") -> Behaviour:
    """Send these bytes, then close the connection or `stall`."""

    async def behave(_: Request, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then == "stall":
            await asyncio.sleep(60)
        writer.close()

    return behave


@dataclass
class LittleServer:
    """An HTTP upstream on a real socket that answers as `behave` says; `script` goes before it, one each."""

    behave: Behaviour = field(default_factory=answer)
    script: list[Behaviour] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    # Answer before the body is read.
    hasty: bool = False
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Refuse connections from now on, at a port that stays the same."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while not writer.is_closing():
                request = await self._read(reader)
                self.requests.append(request)
                behave = self.script.pop(0) if self.script and request.target != "/health" else self.behave
                await behave(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> Request:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = [(line.split(": ", 1)[0], line.split(": ", 1)[1]) for line in lines[1:] if line]
        request = Request(method, target, headers)
        if self.hasty:
            return request
        if request.header("Content-Length"):
            request.body = await reader.readexactly(int(request.header("Content-Length") or 0))
        elif request.header("Transfer-Encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                request.body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        return request


@dataclass
class Front:
    """The gateway, its three upstreams, and who may sign for it."""

    http: httpx.AsyncClient
    port: int
    ingest: LittleServer
    processor: LittleServer
    claims: LittleServer
    issuer: Issuer
    settings: Settings
    stop: asyncio.Event

    def token(self) -> dict[str, str]:
        return {"Authorization": self.issuer.bearer("org-a", ["admin"])}

    async def get(self, target: str, **headers: str) -> httpx.Response:
        return await self.http.get(target, headers={**self.token(), **headers})

    async def post(self, target: str, content: Any = b"{}", **headers: str) -> httpx.Response:
        json_type = {"Content-Type": "application/json"}
        return await self.http.post(target, content=content, headers={**self.token(), **json_type, **headers})


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="session")
def jwks(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(issuer.write_jwks(tmp_path_factory.mktemp("keys") / "jwks.json"))


@asynccontextmanager
async def running(issuer: Issuer, jwks: str, **changed: Any) -> AsyncIterator[Front]:
    ingest, processor, claims = [await LittleServer().start() for _ in range(3)]
    settings = Settings(
        **{
            "port": 0,
            "jwks": jwks,
            "ingest_url": ingest.url,
            "processor_url": processor.url,
            "claims_url": claims.url,
            "event_timeout": timedelta(seconds=0.5),
            "batch_timeout": timedelta(seconds=1),
            "status_timeout": timedelta(seconds=0.5),
            "patients_timeout": timedelta(seconds=0.5),
            "claims_timeout": timedelta(seconds=0.5),
            "claims_batch_timeout": timedelta(seconds=1),
            "health_timeout": timedelta(seconds=0.5),
            "body_timeout": timedelta(seconds=1),
            "breaker_failures": 3,
            "breaker_rest": timedelta(seconds=1),
            **changed,
        }
    )
    keys = key_source(jwks)
    await keys.start()
    stop = asyncio.Event()
    listening: asyncio.Future[Listening] = asyncio.get_running_loop().create_future()
    async with client_session(settings) as session, asyncio.TaskGroup() as tasks:
        upstreams = {name: Upstream(name, url, session, settings) for name, url in urls_of(settings).items()}
        gateway = Gateway(upstreams, TokenVerifier(keys, settings), settings, stop)
        tasks.create_task(serve(gateway, settings, started=listening.set_result, stop=stop))
        port = (await listening).port
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
                yield Front(http, port, ingest, processor, claims, issuer, settings, stop)
        finally:
            stop.set()
    for server in (ingest, processor, claims):
        await server.stop()
    await keys.stop()


@pytest.fixture
async def front(issuer: Issuer, jwks: str) -> AsyncIterator[Front]:
    async with running(issuer, jwks) as gateway:
        yield gateway


class Kit:
    """What tests make upstreams of."""

    answer = staticmethod(answer)
    raw = staticmethod(raw)
    running = staticmethod(running)

    @staticmethod
    def server(port: int = 0, behave: Behaviour | None = None) -> LittleServer:
        return LittleServer(behave or answer(), port=port)


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()
