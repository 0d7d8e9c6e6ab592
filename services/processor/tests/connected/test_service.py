"""The processor as a process of its own, on real parts."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from carebus_common import mongo
from carebus_common.contracts.event import MedicalEvent, encode
from carebus_common.contracts.topics import EVENTS
from carebus_common.kafka import Publisher
from carebus_common.messages import Message, Receipt
from carebus_common.settings import MongoSettings
from carebus_local import keys, topics
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name


@dataclass
class Service:
    url: str
    process: asyncio.subprocess.Process
    state_dir: Path
    publisher: Publisher
    database: mongo.Database
    organization_id: str

    async def send(
        self, *, patient_id: str = "p1", event_type: str = "note", **data: Any
    ) -> tuple[MedicalEvent, Receipt]:
        now = datetime.now(UTC)
        event = MedicalEvent(
            event_id=uuid4(),
            organization_id=self.organization_id,
            patient_id=patient_id,
            type=event_type,
            ts=now,
            received_at=now,
            data=data,
        )
        return event, await self.publisher.publish(Message(EVENTS.name, patient_id.encode(), encode(event)))

    async def get(self, path: str, *, roles: tuple[str, ...] = ("event-sender",), org: str = "") -> httpx.Response:
        token = keys.mint(self.state_dir, org or self.organization_id, roles)
        async with httpx.AsyncClient() as http:
            return await http.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {token}"})

    async def status_becomes(self, path: str, wanted: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while True:
                answer = await self.get(path)
                assert answer.status_code in (200, 404), answer.text
                if answer.status_code == 200 and answer.json()["data"]["status"] == wanted:
                    found: dict[str, Any] = answer.json()["data"]
                    return found
                await asyncio.sleep(0.05)


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def service(stack: StackUrls, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """One process for all tests of the module; the last one ends it."""
    tmp_path = tmp_path_factory.mktemp("processor")
    await topics.apply(stack.kafka_bootstrap)
    keys.ensure_key(tmp_path)
    name = random_name("processor")
    client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="tests")
    publisher = Publisher(
        stack.kafka_bootstrap, client_id="tests", deadline=timedelta(seconds=10), topics=[EVENTS.name]
    )
    await publisher.start()
    port = await _free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "carebus_processor.main",
        env={
            **os.environ,
            "CAREBUS_PORT": str(port),
            "CAREBUS_KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
            "CAREBUS_MONGO_URL": stack.mongo_url,
            "CAREBUS_JWKS": str(keys.jwks_path(tmp_path)),
            "CAREBUS_PROCESSOR_DATABASE": name,
            "CAREBUS_CONSUMER_GROUP": name,
        },
    )
    yield Service(f"http://127.0.0.1:{port}", process, tmp_path, publisher, client[name], name)
    if process.returncode is None:
        process.kill()
    await process.wait()
    await publisher.stop()
    await client.drop_database(name)
    await client.close()


async def _free_port() -> int:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


async def _healthy(service: Service) -> None:
    async with asyncio.timeout(30), httpx.AsyncClient() as http:
        while True:
            try:
                if (await http.get(f"{service.url}/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


async def test_an_events_status_is_known_from_its_row_and_before_that_from_its_receipt(service: Service) -> None:
    await _healthy(service)
    event, receipt = await service.send(event_type="lab-result", value=9, referenceRange={"high": 5})
    path = f"/events/{event.event_id}"
    found = await service.status_becomes(path, "processed")
    assert found["type"] == "lab-result"
    assert found["late"] is False
    row = await service.database["processed_events"].find_one({"eventId": str(event.event_id)})
    assert row is not None
    assert row["source"]["offset"] == receipt.offset
    assert row["result"]["status"] == "processed"

    unknown = uuid4()
    ahead = f"/events/{unknown}?partition={receipt.partition}&offset={receipt.offset + 1000}"
    nothing_else = dict.fromkeys(found)
    answer = (await service.get(ahead)).json()["data"]
    assert answer == {**nothing_else, "eventId": str(unknown), "status": "accepted"}
    assert (await service.get(f"/events/{unknown}")).status_code == 404


async def test_another_organization_or_role_does_not_learn_of_an_event(service: Service) -> None:
    await _healthy(service)
    event, _ = await service.send()
    path = f"/events/{event.event_id}"
    await service.status_becomes(path, "processed")
    assert (await service.get(path, org="other")).status_code == 404
    assert (await service.get(path, roles=("operator",))).status_code == 403
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{service.url}{path}")).status_code == 401


async def test_operators_see_the_consumer_that_runs_here(service: Service) -> None:
    await _healthy(service)
    event, _ = await service.send()
    await service.status_becomes(f"/events/{event.event_id}", "processed")

    answer = await service.get("/ops/processor/consumer", roles=("operator",), org="carebus")

    view = answer.json()["data"]
    assert (view["group"], view["topic"], view["paused"]) == (service.organization_id, EVENTS.name, None)
    assert len(view["partitions"]) == len(view["thisReplica"]["partitions"]) == EVENTS.partitions
    assert (await service.get("/ops/processor/consumer", roles=("operator",))).status_code == 403
    assert (await service.get("/ops/processor/dead-letters", roles=("operator",))).json()["data"] == []


@pytest.mark.parametrize(
    "query", ["partition=-1", "offset=1e9", "partition[$ne]=1", "partition=1&partition=2", "sort=$where", "offset=x"]
)
async def test_a_strange_receipt_is_a_400(service: Service, query: str) -> None:
    await _healthy(service)
    answer = await service.get(f"/events/{uuid4()}?{query}")
    assert answer.status_code == 400, answer.text


async def test_sigterm_ends_the_process_within_ten_seconds_and_commits_what_is_done(service: Service) -> None:
    await _healthy(service)
    for n in range(50):
        event, _ = await service.send(patient_id=f"p{n % 5}", n=n)
    await service.status_becomes(f"/events/{event.event_id}", "processed")
    service.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(service.process.wait(), 10) == 0
