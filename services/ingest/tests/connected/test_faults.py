"""Ingest as a process of its own, while the parts it stands on are stopped, killed and brought back."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest_asyncio

from carebus_common.testing.tokens import Issuer
from carebus_local import topics
from carebus_local.parts import Site, start_kafka, start_valkey
from carebus_local.ports import Ports
from carebus_local.state import lock
from carebus_local.supervisor import Supervisor
from carebus_local.testing import random_name

from ..conftest import Ingest


@dataclass
class Parts:
    """Kafka and Valkey of our own. There is no store: ingest needs none."""

    bootstrap: str
    redis_url: str
    supervisor: Supervisor

    @asynccontextmanager
    async def stopped(self, name: str) -> AsyncIterator[None]:
        """Within, the part does not answer: its process is stopped and its sockets stay open."""
        pid = self.supervisor.pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def parts() -> AsyncIterator[Parts]:
    with tempfile.TemporaryDirectory(prefix="carebus-ingest-") as scratch, lock(Path(scratch)):
        ports = Ports(Path(scratch))
        supervisor = Supervisor(Path(scratch))
        try:
            site = Site(Path(scratch), ports, supervisor, {}, usual_ports=False)
            await asyncio.gather(start_kafka(site), start_valkey(site))
            urls = site.urls()
            await topics.apply(urls.kafka_bootstrap)
            yield Parts(urls.kafka_bootstrap, urls.redis_url, supervisor)
        finally:
            await supervisor.stop_all()
            ports.release()


@dataclass
class Process:
    """The service as it is started in production, and a sender."""

    ingest: Ingest
    process: asyncio.subprocess.Process


@asynccontextmanager
async def started(parts: Parts, directory: Path, **settings: str) -> AsyncIterator[Process]:
    issuer = Issuer()
    environment = {
        "CAREBUS_PORT": "0",
        "CAREBUS_KAFKA_BOOTSTRAP": parts.bootstrap,
        "CAREBUS_REDIS_URL": parts.redis_url,
        "CAREBUS_MONGO_URL": "mongodb://127.0.0.1:1/",
        "CAREBUS_JWKS": str(issuer.write_jwks(directory / "jwks.json")),
        "CAREBUS_RATE_LIMIT_EVENTS_PER_MINUTE": "1000000000",
        "CAREBUS_RATE_LIMIT_BYTES_PER_MINUTE": "1000000000000",
        **settings,
    }
    log = directory / "ingest.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "carebus_ingest.main", env={**os.environ, **environment}, stderr=output
        )
    try:
        port, management_port = await _listening(log, process)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
            ingest = Ingest(port, management_port, issuer, http, parts.bootstrap, random_name("org"))
            yield Process(ingest, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _listening(log: Path, process: asyncio.subprocess.Process) -> tuple[int, int]:
    async with asyncio.timeout(30):
        while True:
            text = log.read_text()
            found = re.search(r'(?=.*"event": "listening")(?=.*"port": (\d+))(?=.*"management_port": (\d+))', text)
            if found:
                return int(found[1]), int(found[2])
            assert process.returncode is None, text
            await asyncio.sleep(0.05)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Wait until it holds, at most `seconds`; how long that took."""
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def accepts(ingest: Ingest) -> bool:
    return (await ingest.post(ingest.event())).status_code == 202


async def healthy(ingest: Ingest) -> bool:
    return (await ingest.http.get("/health")).status_code == 200


async def refused_within(ingest: Ingest, seconds: float) -> None:
    """An event is answered 503 with Retry-After within `seconds`, and so is the next one, at once."""
    for limit in (seconds, 0.5):
        began = time.monotonic()
        answer = await ingest.post(ingest.event())
        assert time.monotonic() - began < limit
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "2"
    async with asyncio.timeout(3):
        while (health := await ingest.http.get("/health")).status_code == 200:
            await asyncio.sleep(0.05)
    assert health.json()["error"]["details"] == [{"path": "broker", "rule": "away"}]


async def test_a_broker_that_hangs_is_503_within_two_seconds_and_used_again_within_ten(
    parts: Parts, tmp_path: Path
) -> None:
    async with started(parts, tmp_path) as service:
        ingest = service.ingest
        assert await accepts(ingest)
        async with parts.stopped("kafka"):
            await refused_within(ingest, 2)
            batch = await ingest.post_batch([ingest.event() for _ in range(3)])
            assert batch.status_code == 503
        assert await until(lambda: accepts(ingest), 10) < 10
        # An answer of /health holds for a second.
        await until(lambda: healthy(ingest), 3)
        assert service.process.returncode is None


async def test_a_broker_that_is_stopped_is_503_and_found_again_when_it_returns(parts: Parts, tmp_path: Path) -> None:
    async with started(parts, tmp_path) as service:
        ingest = service.ingest
        answers: list[tuple[dict[str, Any], httpx.Response]] = []
        stop = asyncio.Event()

        async def send(patient: str) -> None:
            while not stop.is_set():
                event = ingest.event(patientId=patient)
                answers.append((event, await ingest.post(event)))

        senders = [asyncio.create_task(send(f"p{number}")) for number in range(10)]
        await asyncio.sleep(0.5)
        await parts.supervisor.stop("kafka")
        await refused_within(ingest, 2)
        memory = resident(service.process.pid)
        await asyncio.sleep(3)
        assert resident(service.process.pid) < memory + 30_000_000
        await parts.supervisor.start_again("kafka")
        assert await until(lambda: accepts(ingest), 10) < 10
        await asyncio.sleep(0.5)
        stop.set()
        await asyncio.gather(*senders)

        assert {answer.status_code for _, answer in answers} == {202, 503}
        receipts = [answer.json()["data"] for _, answer in answers if answer.status_code == 202]
        assert len({(receipt["partition"], receipt["offset"]) for receipt in receipts}) == len(receipts)
        sample = receipts[:: max(1, len(receipts) // 20)]
        for receipt, record in zip(sample, await ingest.records(sample), strict=True):
            assert dict(record.headers)["ce_id"].decode() == receipt["eventId"]


def resident(pid: int) -> int:
    """Bytes of memory in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_without_redis_events_are_accepted_as_quickly_and_limits_return_with_it(
    parts: Parts, tmp_path: Path
) -> None:
    async with started(parts, tmp_path, CAREBUS_RATE_LIMIT_EVENTS_PER_MINUTE="20") as service:
        ingest = service.ingest
        assert await accepts(ingest)
        async with parts.stopped("valkey"):
            began = time.monotonic()
            assert await accepts(ingest)
            assert time.monotonic() - began < 1.5
            began = time.monotonic()
            for _ in range(30):
                assert await accepts(ingest)
            assert time.monotonic() - began < 3
            metrics = await ingest.http.get(f"http://127.0.0.1:{ingest.management_port}/metrics")
            (failed_open,) = re.findall(r"^carebus_rate_limit_failed_open_total (\S+)", metrics.text, re.MULTILINE)
            assert float(failed_open) >= 31

        async def limited() -> bool:
            return (await ingest.post(ingest.event())).status_code == 429

        await until(limited, 10)


async def test_it_starts_without_any_part_and_takes_events_once_they_are_there(parts: Parts, tmp_path: Path) -> None:
    await parts.supervisor.stop("kafka", "valkey")
    try:
        async with started(parts, tmp_path) as service:
            await refused_within(service.ingest, 2)
            await asyncio.gather(parts.supervisor.start_again("kafka"), parts.supervisor.start_again("valkey"))
            assert await until(lambda: accepts(service.ingest), 10) < 10
    finally:
        for part in parts.supervisor.status():
            if part.health == "stopped":
                await parts.supervisor.start_again(part.name)


async def test_sigterm_under_load_fails_no_request_and_ends_within_ten_seconds(parts: Parts, tmp_path: Path) -> None:
    async with started(parts, tmp_path) as service:
        outcomes: Counter[str] = Counter()

        async def send() -> None:
            async with httpx.AsyncClient(base_url=service.ingest.http.base_url, timeout=10, trust_env=False) as http:
                headers = {"authorization": service.ingest.bearer()}
                while True:
                    try:
                        answer = await http.post("/events", json=service.ingest.event(), headers=headers)
                    except httpx.ConnectError:
                        outcomes["not connected"] += 1
                        return
                    outcomes[str(answer.status_code)] += 1

        senders = [asyncio.create_task(send()) for _ in range(16)]
        async with asyncio.timeout(30):
            while outcomes["202"] < 100:
                await asyncio.sleep(0.02)
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            await asyncio.gather(*senders)
            assert await service.process.wait() == 0
        assert time.monotonic() - began < 10
        assert set(outcomes) == {"202", "not connected"}
