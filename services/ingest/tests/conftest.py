"""Ingest as it runs, with real parts behind it and a real connection in front."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from carebus_common.contracts.topics import EVENTS
from carebus_common.http.server import Listening
from carebus_common.testing.tokens import Issuer
from carebus_ingest.main import main
from carebus_ingest.settings import Settings
from carebus_local import topics
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name

PUBLIC_URL = "https://carebus.example"


@dataclass
class Ingest:
    """A running ingest, and somebody who may send to it."""

    port: int
    management_port: int
    issuer: Issuer
    http: httpx.AsyncClient
    kafka_bootstrap: str
    organization_id: str

    def event(self, **fields: Any) -> dict[str, Any]:
        """An ordinary event; `None` leaves a field out."""
        event = {
            "eventId": str(uuid4()),
            "patientId": "patient-1",
            "type": "vitals.recorded",
            "ts": "2026-03-01T12:00:00-05:00",
            "data": {"heartRate": 80},
            **fields,
        }
        return {name: value for name, value in event.items() if value is not None}

    def bearer(self, organization_id: str | None = None, roles: tuple[str, ...] = ("event-sender",)) -> str:
        return self.issuer.bearer(organization_id or self.organization_id, roles)

    async def post(
        self,
        body: Any,
        path: str = "/events",
        *,
        organization_id: str | None = None,
        content_type: str | None = "application/json",
        **headers: str,
    ) -> httpx.Response:
        """Post bytes as they are, or anything else as JSON. Header names are given with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"authorization": self.bearer(organization_id), **named}
        if content_type is not None:
            sent["content-type"] = content_type
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.http.post(path, content=content, headers=sent)

    async def post_batch(self, events: Any, **options: Any) -> httpx.Response:
        return await self.post(events, "/events/batch", **options)

    async def record(self, receipt: dict[str, Any]) -> ConsumerRecord:
        """The record that a receipt names."""
        (found,) = await self.records([receipt])
        return found

    async def records(self, receipts: list[dict[str, Any]]) -> list[ConsumerRecord]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka_bootstrap, enable_auto_commit=False)
        await consumer.start()
        try:
            found = []
            for receipt in receipts:
                partition = TopicPartition(EVENTS.name, receipt["partition"])
                consumer.assign([partition])
                consumer.seek(partition, receipt["offset"])
                async with asyncio.timeout(10):
                    found.append(await consumer.getone(partition))
            return found
        finally:
            await consumer.stop()


RunIngest = Callable[..., AbstractAsyncContextManager[Ingest]]


@asynccontextmanager
async def running(kafka_bootstrap: str, redis_url: str, directory: Path, **settings: Any) -> AsyncIterator[Ingest]:
    """Ingest on free ports, with rate limits that nothing reaches unless `settings` say so."""
    issuer = Issuer()
    configured = Settings(
        **{
            "port": 0,
            "management_port": 0,
            "kafka_bootstrap": kafka_bootstrap,
            "redis_url": redis_url,
            "jwks": str(issuer.write_jwks(directory / f"{uuid4().hex}.json")),
            "public_url": PUBLIC_URL,
            "rate_limit_events_per_minute": 10**9,
            "rate_limit_bytes_per_minute": 10**12,
            "shutdown_timeout": timedelta(seconds=3),
            **settings,
        }
    )
    started: asyncio.Future[Listening] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.create_task(main(configured, started=started.set_result, stop=stop))
    first: list[asyncio.Future[Any]] = [started, task]
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    if task.done():
        await task
    ports = started.result()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports.port}", timeout=30, trust_env=False) as http:
        yield Ingest(ports.port, ports.management_port, issuer, http, kafka_bootstrap, random_name("org"))
    stop.set()
    await task


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def run_ingest(stack: StackUrls, tmp_path_factory: pytest.TempPathFactory) -> RunIngest:
    """Starts an ingest of one's own: `async with run_ingest(setting=…) as ingest`."""
    await topics.apply(stack.kafka_bootstrap)
    directory = tmp_path_factory.mktemp("keys")
    return lambda **settings: running(
        **{"kafka_bootstrap": stack.kafka_bootstrap, "redis_url": stack.redis_url, "directory": directory, **settings}
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def ingest(run_ingest: RunIngest) -> AsyncIterator[Ingest]:
    """One ingest for all tests that do not stop anything."""
    async with run_ingest() as running_ingest:
        yield running_ingest
