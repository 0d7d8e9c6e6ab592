"""The system with something in it, for schemathesis to knock at every door of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from carebus_common.auth import ROLES
from carebus_common.contracts.topics import EVENTS, EVENTS_PROCESSED
from carebus_common.kafka import Publisher
from carebus_common.messages import Message
from carebus_local.system import System, running
from carebus_local.testing import eventually

ROOT: Final = Path(__file__).parents[2]
SERVICES: Final = ("ingest", "processor", "claims", "gateway")
DOCUMENTS: Final = {service: ROOT / f"docs/openapi/{service}.json" for service in SERVICES}
DOCUMENTS["graphql"] = ROOT / "docs/schema.graphql"

# `make fuzz` sets them; without, every run is the same and short.
EXAMPLES: Final = os.environ.get("FUZZ_EXAMPLES")
SEED: Final = os.environ.get("FUZZ_SEED")

# The operations organization, which sees the most; what it owns nobody else may see.
OWNER: Final = "carebus"
STRANGER: Final = "another-hospital"
STAFF: Final = sorted(ROLES - {"patient"})


@dataclass(frozen=True)
class Report:
    """What schemathesis said of a service."""

    code: int
    text: str

    def number(self, pattern: str) -> int:
        found = re.search(pattern, self.text)
        assert found, self.text
        return int(found[1])


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    async with running(tmp_path_factory.mktemp("carebus")) as started:
        await fill(started)
        yield started


async def fill(system: System) -> None:
    """The owner's patients, and dead letters in both consumers."""
    token = {"Authorization": f"Bearer {system.token(OWNER, STAFF)}"}
    publisher = Publisher(
        system.parts.kafka_bootstrap,
        client_id="fill",
        deadline=timedelta(seconds=10),
        topics=[EVENTS.name, EVENTS_PROCESSED.name],
    )
    await publisher.start()
    async with httpx.AsyncClient(base_url=system.urls["gateway"], headers=token, timeout=10) as http:
        for number in (1, 2):
            event = {"patientId": f"patient-{number}", "type": "note", "ts": datetime.now(UTC).isoformat(), "data": {}}
            (await http.post("/events", json=event | {"eventId": str(uuid4())})).raise_for_status()
            for topic in (EVENTS.name, EVENTS_PROCESSED.name):
                key = f"no-patient-{number}".encode()
                await publisher.publish(Message(topic, key, b"no event", (("organizationId", OWNER.encode()),)))
        await publisher.stop()

        async def filled() -> bool:
            patients = [await http.get(f"/patients/patient-{number}") for number in (1, 2)]
            letters = [await http.get(f"/ops/{service}/dead-letters") for service in ("processor", "claims")]
            return all(one.status_code == 200 for one in patients) and all(
                len(one.json()["data"]) == 2 for one in letters
            )

        await eventually(filled, 60)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def reports(system: System, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """Of every service: two at a time, which is what the machine has cores for."""
    folder = tmp_path_factory.mktemp("schemathesis")
    bearer = {name: f"Bearer {system.token(name, STAFF)}" for name in (OWNER, STRANGER)}
    users = [
        {"name": name, "fixedHeaders": [{"name": "Authorization", "value": value}]} for name, value in bearer.items()
    ]
    (folder / "users.json").write_text(json.dumps({"auth": users}))
    auth = f'[auth.wfc]\npath = "{folder}/users.json"\nuser = "{OWNER}"\npeers = ["{OWNER}", "{STRANGER}"]\n'
    config = folder / "schemathesis.toml"
    config.write_text(f"{Path(__file__).with_name('schemathesis.toml').read_text()}\n{auth}")
    two = asyncio.Semaphore(2)

    urls = {**system.urls, "graphql": f"{system.urls['gateway']}/graphql"}

    async def report(name: str) -> Report:
        async with two:
            return await knock(config, DOCUMENTS[name], urls[name], bearer[OWNER])

    return dict(zip(DOCUMENTS, await asyncio.gather(*map(report, DOCUMENTS)), strict=True))


async def knock(config: Path, document: Path, url: str, authorization: str) -> Report:
    """Run schemathesis on what a document describes. For GraphQL it knows no users, only headers."""
    if EXAMPLES:
        how = ["--max-examples", EXAMPLES, "--generation-database", "none", *(["--seed", SEED] if SEED else [])]
    else:
        how = ["--max-examples", "8", "--seed", "1", "--generation-deterministic"]
    if document.suffix == ".graphql":
        how += ["--header", f"Authorization: {authorization}"]
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        *("--config-file", str(config), "run", str(document), "--url", url, "--no-color", *how),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        text, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Report(process.returncode, text.decode())
