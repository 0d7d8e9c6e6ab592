"""The gateway as it runs: its own process, started before anything it stands in front of."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from carebus_common.testing.tokens import Issuer
from carebus_local.ports import Ports


@dataclass
class Process:
    process: asyncio.subprocess.Process
    http: httpx.AsyncClient
    upstreams: dict[str, int]
    issuer: Issuer
    log: Path

    async def status(self, method: str, target: str) -> int | None:
        """The answer's status; None if there was none."""
        try:
            headers = {"Authorization": self.issuer.bearer("org-a", ["admin"])}
            return (await self.http.request(method, target, headers=headers)).status_code
        except httpx.TransportError:
            return None

    async def until(self, method: str, target: str, status: int) -> None:
        async with asyncio.timeout(20):
            while await self.status(method, target) != status:
                await asyncio.sleep(0.05)


@pytest.fixture
async def gateway(issuer: Issuer, tmp_path: Path) -> AsyncIterator[Process]:
    ports = Ports(tmp_path)
    port = ports.reserve("gateway")
    upstreams = {name: ports.reserve(name) for name in ("ingest", "processor", "claims")}
    environment = {
        **os.environ,
        "CAREBUS_PORT": str(port),
        "CAREBUS_JWKS": str(tmp_path / "jwks.json"),
        **{f"CAREBUS_{name.upper()}_URL": f"http://127.0.0.1:{taken}" for name, taken in upstreams.items()},
    }
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "carebus_gateway.main", env=environment, stderr=stderr
        )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
        yield Process(process, http, upstreams, issuer, log)
    if process.returncode is None:
        process.kill()
        await process.wait()
    ports.release()


async def test_the_gateway_starts_first_and_works_as_soon_as_the_others_come(
    gateway: Process, kit: Any, tmp_path: Path
) -> None:
    await gateway.until("GET", "/health", 503)
    assert await gateway.status("GET", "/patients/p") == 503  # not even keys
    gateway.issuer.write_jwks(tmp_path / "jwks.json")
    servers = [await kit.server(port).start() for port in gateway.upstreams.values()]

    await gateway.until("GET", "/patients/p", 200)
    await gateway.until("POST", "/events", 200)
    await gateway.until("GET", "/health", 200)

    for server in servers:
        await server.stop()


async def test_it_stops_in_time_and_answers_what_it_has_begun(gateway: Process, kit: Any, tmp_path: Path) -> None:
    """SIGTERM under traffic: every request that got a connection gets its answer."""
    gateway.issuer.write_jwks(tmp_path / "jwks.json")

    async def slow(request: Any, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        await kit.answer()(request, writer)

    server = await kit.server(gateway.upstreams["claims"], slow).start()
    await gateway.until("GET", "/patients/p", 200)
    inflight = [asyncio.create_task(gateway.status("GET", f"/patients/{n}")) for n in range(20)]
    async with asyncio.timeout(10):
        while len(server.requests) < 21:
            await asyncio.sleep(0.01)

    gateway.process.send_signal(signal.SIGTERM)

    assert set(await asyncio.gather(*inflight)) == {200}
    async with asyncio.timeout(10):
        assert await gateway.process.wait() == 0
    assert "ERROR" not in gateway.log.read_text().upper().replace("UVICORN.ERROR", "")
    await server.stop()
