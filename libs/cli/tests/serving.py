"""An app, or a handler of requests, on a real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp


def routed(handle: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """An app in which `handle` answers all requests."""
    return Starlette(routes=[Route("/{path:path}", handle, methods=["GET", "POST"])])


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """The app's URL, while it is served."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="off"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task
