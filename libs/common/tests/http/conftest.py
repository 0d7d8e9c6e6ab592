"""An app behind the real server, with limits small enough for a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import StreamingResponse

from carebus_common.http import Data, create_app
from carebus_common.settings import HttpSettings
from carebus_common.testing.connections import Connection, Serving, connected, serving

CANARY = "Jane Canary"
LIMITS: dict[str, Any] = {
    "max_header_bytes": 4096,
    "max_body_bytes": 10_000,
    "body_timeout": timedelta(milliseconds=300),
    "shutdown_timeout": timedelta(seconds=3),
}


class Note(BaseModel):
    text: str


def build() -> FastAPI:
    app = create_app(title="Example", version="1", settings=HttpSettings(port=0, **LIMITS))
    app.state.release = asyncio.Event()
    app.state.entered = asyncio.Event()

    @app.get("/fast")
    async def fast() -> Data[str]:
        return Data(data="fast")

    @app.get("/held")
    async def held(request: Request) -> Data[str]:
        request.app.state.entered.set()
        await request.app.state.release.wait()
        return Data(data="held")

    @app.get("/client")
    async def client(request: Request) -> Data[list[str]]:
        return Data(data=[request.client.host if request.client else "", request.url.scheme])

    @app.post("/notes")
    async def notes(note: Note) -> Data[int]:
        return Data(data=len(note.text))

    @app.get("/late-bug")
    async def late_bug() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"half"
            raise ValueError(CANARY)

        return StreamingResponse(parts())

    return app


@pytest.fixture
async def app() -> FastAPI:
    return build()


@pytest.fixture
async def served(app: FastAPI) -> AsyncIterator[Serving]:
    async with serving(app, **LIMITS) as running:
        yield running


@pytest.fixture
async def connection(served: Serving) -> AsyncIterator[Connection]:
    async with connected(served.port) as connection:
        yield connection
