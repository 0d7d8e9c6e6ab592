"""The service as it runs: its own process, on a real broker and a real store."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from carebus_common.contracts.processed import ProcessedEvent
from carebus_common.kafka import Publisher
from carebus_common.messages import Message
from carebus_common.testing.tokens import Issuer
from carebus_local.parts import StackUrls, running_parts
from carebus_local.ports import Ports
from carebus_local.testing import create_topic, random_name


class Claims:
    """One process of the service; `kill` and `start` leave its settings as they are."""

    def __init__(self, environment: dict[str, str], issuer: Issuer) -> None:
        self._environment = environment
        self._issuer = issuer
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "carebus_claims.main", env={**os.environ, **self._environment}
        )

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """The exit code after SIGTERM. Raises TimeoutError after 10 s."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            return await self._process.wait()

    async def get(self, path: str, organization: str = "org-a") -> httpx.Response:
        url = f"http://127.0.0.1:{self._environment['CAREBUS_PORT']}{path}"
        async with httpx.AsyncClient() as http:
            return await http.get(
                url, headers={"Authorization": self._issuer.bearer(organization, ["admin"])}, timeout=10
            )

    async def eventually(self, path: str, met: Callable[[httpx.Response], bool], seconds: float = 40) -> httpx.Response:
        """The first answer that is as expected. Raises TimeoutError with the last one."""
        answer: httpx.Response | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        answer = await self.get(path)
                    except httpx.TransportError:
                        await asyncio.sleep(0.05)
                        continue
                    if met(answer):
                        return answer
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise TimeoutError(f"last answer: {answer.text if answer else None}") from None


@asynccontextmanager
async def claims_on(urls: StackUrls, issuer: Issuer, jwks: str, state: Path, *, topic: str) -> AsyncIterator[Claims]:
    ports = Ports(state)
    claims = Claims(
        {
            **urls.as_env(),
            "CAREBUS_PORT": str(ports.reserve("claims")),
            "CAREBUS_JWKS": jwks,
            "CAREBUS_CLAIMS_DATABASE": random_name("claims"),
            "CAREBUS_CLAIMS_GROUP": random_name("claims"),
            "CAREBUS_CLAIMS_TOPIC": topic,
        },
        issuer,
    )
    await claims.start()
    try:
        yield claims
    finally:
        assert await claims.stop() == 0
        ports.release()


@pytest.fixture
async def topic(stack: StackUrls) -> str:
    name = random_name("processed")
    await create_topic(stack.kafka_bootstrap, name, 3)
    return name


async def publish(urls: StackUrls, topic: str, events: list[ProcessedEvent]) -> None:
    publisher = Publisher(urls.kafka_bootstrap, client_id="test", deadline=timedelta(seconds=20))
    await publisher.start()
    try:
        async with asyncio.timeout(30):
            while not publisher.available:
                await asyncio.sleep(0.05)
        await publisher.publish_each(
            [
                Message(
                    topic,
                    event.patient_id.encode(),
                    event.model_dump_json(by_alias=True).encode(),
                )
                for event in events
            ]
        )
    finally:
        await publisher.stop()


def total(expected: int) -> Callable[[httpx.Response], bool]:
    return lambda answer: answer.status_code == 200 and answer.json()["data"]["eventTotal"] >= expected


async def test_a_processed_event_becomes_a_line_of_history(
    stack: StackUrls, issuer: Issuer, jwks: str, events: Any, tmp_path: Path, topic: str
) -> None:
    async with claims_on(stack, issuer, jwks, tmp_path, topic=topic) as claims:
        history = [events(type="admission"), events(type="LAB_RESULT", patientId="a/b"), events(type="note")]

        await publish(stack, topic, [*history, history[0]])

        await claims.eventually("/patients/patient-1", total(2))
        listed = (await claims.eventually("/patients/a%2Fb/history", lambda a: a.status_code == 200)).json()["data"]
        assert [row["eventId"] for row in listed] == [str(history[1].event_id)]
        answer = await claims.get(f"/events/{history[0].event_id}?partition=0&offset=0")
        assert answer.json()["data"]["type"] == "admission"
        assert (await claims.get("/patients/patient-1", organization="org-b")).status_code == 404
        assert (await claims.eventually("/health", lambda a: a.status_code == 200)).json()["data"]["status"] == "ok"


async def test_every_event_is_recorded_once_although_the_process_is_killed(
    stack: StackUrls, issuer: Issuer, jwks: str, events: Any, tmp_path: Path, topic: str
) -> None:
    history = [events(patientId=f"p{n % 7}", type=f"t{n}") for n in range(1400)]
    async with claims_on(stack, issuer, jwks, tmp_path, topic=topic) as claims:
        await publish(stack, topic, history[:700])
        await claims.eventually("/patients/p0", total(1))
        await claims.kill()
        await publish(stack, topic, [*history[:700:10], *history[700:]])
        await claims.start()

        for patient in range(7):
            summary = (await claims.eventually(f"/patients/p{patient}", total(200))).json()["data"]
            assert (summary["eventTotal"], sum(summary["counts"].values())) == (200, 200)
            listed = (await claims.get(f"/patients/p{patient}/history?limit=200")).json()
            assert len({row["eventId"] for row in listed["data"]}) == 200
            assert listed["page"]["next"] is None


@pytest.mark.timeout(240)
async def test_claims_starts_without_its_parts_and_goes_on_when_they_come(
    issuer: Issuer, jwks: str, events: Any, tmp_path: Path
) -> None:
    async with running_parts(tmp_path / "parts", environ={}, usual_ports=False) as parts:
        await asyncio.gather(parts.supervisor.stop("kafka"), parts.supervisor.stop("store"))
        async with claims_on(parts.urls, issuer, jwks, tmp_path, topic="processed") as claims:
            answer = await claims.eventually("/patients/patient-1", lambda a: a.status_code == 503)
            assert answer.json()["error"]["code"] == "unavailable"
            assert int(answer.headers["retry-after"]) >= 1
            assert (await claims.get("/health")).status_code == 503

            await asyncio.gather(parts.supervisor.start_again("kafka"), parts.supervisor.start_again("store"))
            await create_topic(parts.urls.kafka_bootstrap, "processed", 3)
            await publish(parts.urls, "processed", [events()])
            await claims.eventually("/patients/patient-1", total(1))

            await parts.supervisor.stop("store")
            await publish(parts.urls, "processed", [events()])
            await claims.eventually("/patients/patient-1", lambda a: a.status_code == 503)
            await parts.supervisor.start_again("store")
            await claims.eventually("/patients/patient-1", total(2))
            await claims.eventually("/health", lambda a: a.status_code == 200)
