"""The whole system as `carebus up` starts it, and a sender that keeps a ledger."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from carebus_local.system import System, running
from carebus_local.testing import random_name


async def eventually(check: Callable[[], Awaitable[bool]], *, within: float, what: str) -> None:
    try:
        async with asyncio.timeout(within):
            while not await check():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {within} s: {what}") from None


def new_event(patient_id: str, event_type: str = "note", **data: Any) -> dict[str, Any]:
    return {
        "eventId": str(uuid4()),
        "patientId": patient_id,
        "type": event_type,
        "ts": datetime.now(UTC).isoformat(),
        "data": data,
    }


@dataclass
class Hospital:
    """One organization's sender and reader. `accepted` is its ledger: per patient, the ids answered with 202."""

    system: System
    http: httpx.AsyncClient
    organization_id: str = field(default_factory=lambda: random_name("hospital"))
    accepted: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sender = {"Authorization": f"Bearer {self.system.token(self.organization_id, ['event-sender'])}"}
        self.reader = {"Authorization": f"Bearer {self.system.token(self.organization_id, ['admin'])}"}

    async def post(self, event: dict[str, Any], *, url: str | None = None, timeout: float = 10) -> httpx.Response:
        return await self.http.post(
            f"{url or self.system.urls['gateway']}/events", json=event, headers=self.sender, timeout=timeout
        )

    async def send(self, event: dict[str, Any], *, within: float = 60) -> None:
        """Post until it is accepted, then write it into the ledger; the caller awaits it before the patient's next."""
        async with asyncio.timeout(within):
            while True:
                try:
                    answer = await self.post(event)
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
                    continue
                if answer.status_code == 202:
                    self.accepted.setdefault(event["patientId"], []).append(event["eventId"])
                    return
                assert answer.status_code in (502, 503, 504), answer.text
                await asyncio.sleep(0.1)

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(f"{self.system.urls['gateway']}{path}", headers=self.reader)

    async def history(self, patient_id: str) -> list[str]:
        """The patient's event ids in the order in which they took effect."""
        rows = [row async for row in self.history_rows(patient_id)]
        return [row["eventId"] for row in rows]

    async def history_rows(self, patient_id: str) -> AsyncIterator[dict[str, Any]]:
        cursor = ""
        while True:
            answer = await self.get(f"/patients/{quote(patient_id, safe='')}/history?order=asc&limit=200{cursor}")
            assert answer.status_code == 200, answer.text
            for row in answer.json()["data"]:
                yield row
            following = answer.json()["page"]["next"]
            if following is None:
                return
            cursor = f"&cursor={following}"

    async def all_processed(self, *, within: float) -> None:
        """Wait until every patient's history is exactly its ledger, and stays so in order."""
        for patient_id, ids in self.accepted.items():
            wanted = list(dict.fromkeys(ids))

            async def complete(patient_id: str = patient_id, wanted: list[str] = wanted) -> bool:
                answer = await self.get(f"/patients/{patient_id}")
                return answer.status_code == 200 and answer.json()["data"]["eventTotal"] >= len(wanted)

            await eventually(complete, within=within, what=f"the {len(wanted)} events of {patient_id}")
            assert await self.history(patient_id) == wanted
            # The history cannot hold an event twice; the count of what was applied could.
            assert (await self.get(f"/patients/{quote(patient_id, safe='')}")).json()["data"]["eventTotal"] == len(
                wanted
            )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """Everything, with parts of its own, so that a test may take one away. Three processors."""
    state_dir: Path = tmp_path_factory.mktemp("carebus")
    async with running(state_dir, processors=3) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="session")
async def hospital(system: System) -> AsyncIterator[Hospital]:
    async with httpx.AsyncClient(timeout=15) as http:
        yield Hospital(system, http)


@dataclass
class Processes:
    """The system's processes by name, as its status shows them."""

    system: System

    def pid(self, name: str) -> int:
        (status,) = (one for one in self.system.status() if one.name == name)
        assert status.pid is not None
        return status.pid

    def send(self, name: str, number: signal.Signals) -> None:
        os.kill(self.pid(name), number)

    async def healthy(self, *, within: float = 60) -> None:
        async def all_healthy() -> bool:
            return all(one.health == "healthy" for one in self.system.status())

        await eventually(all_healthy, within=within, what="every part and service is healthy")


@pytest.fixture
def processes(system: System) -> Processes:
    return Processes(system)
