"""How fast operators' questions are answered: `python bench/ops/run.py [DEAD_LETTERS]`.

Starts a store of its own unless CAREBUS_MONGO_URL names one, fills a database with dead letters of about 1 KB, ten
tenants', of twenty causes, two thirds of them open, serves the ops API on a real server and asks it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from carebus_common import mongo
from carebus_common.auth import TokenVerifier
from carebus_common.contracts.event import MedicalEvent
from carebus_common.http import create_app
from carebus_common.jwks import key_source
from carebus_common.logging import patient_hash
from carebus_common.ops import OpsSettings, create_indexes, operations_routes
from carebus_common.settings import MongoSettings, TokenSettings
from carebus_common.testing.connections import serving
from carebus_common.testing.tokens import Issuer
from carebus_local.parts import Site, start_store
from carebus_local.ports import Ports
from carebus_local.state import lock
from carebus_local.supervisor import Supervisor

TOPIC = "medical.events.v1"
BATCH = 2000
ROUNDS = 5


@dataclass(frozen=True)
class NoReplica:
    partitions: tuple[int, ...] = ()
    in_flight: int = 0
    store_away: bool = False
    broker_away: bool = False

    def status(self) -> NoReplica:
        return self


def dead_letters(count: int) -> Iterator[dict[str, Any]]:
    began = datetime.now(UTC) - timedelta(hours=1)
    for n in range(count):
        organization_id, patient_id = f"org-{n % 10}", f"patient-{n % 5003}"
        status = ("open", "open", "redriven")[n % 3]
        at = began + timedelta(seconds=3000 * n / count)
        yield {
            "_id": f"{TOPIC}-{n % 12}-{n}",
            "status": status,
            "reason": "permanent",
            "blocking": True,
            "organizationId": organization_id,
            "eventId": f"0198c0de-0000-7000-8000-{n:012d}",
            "patientId": patient_id,
            "patient": patient_hash(organization_id, patient_id),
            "type": "lab-result",
            "source": {"topic": TOPIC, "partition": n % 12, "offset": n},
            "key": patient_id.encode(),
            "value": b'{"data": {"note": "' + b"x" * 600 + b'"}}',
            "headers": [["ce_type", b"lab-result"], ["organizationId", organization_id.encode()]],
            "timestamp": 0,
            "failure": {
                "class": "ValueError",
                "message": "",
                "where": "carebus_processor/handlers/apply.py:apply:12",
                "fingerprint": f"{n % 20:012x}",
                "attempts": 4,
                "firstFailedAt": at,
                "lastFailedAt": at,
            },
            "causes": [],
            "redrives": 0,
            "previous": None,
            "createdAt": at,
            "publishedAt": at,
            "edits": [],
        }


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="carebus-bench-") as name, lock(Path(name)):
        scratch = Path(name)
        ports = Ports(scratch)
        supervisor = Supervisor(scratch)
        try:
            given = {"store": url} if (url := os.environ.get("CAREBUS_MONGO_URL")) else {}
            site = Site(scratch, ports, supervisor, given, usual_ports=False)
            await start_store(site)
            await measure(site.urls().mongo_url, scratch, count)
        finally:
            await supervisor.stop_all()
            ports.release()


async def measure(mongo_url: str, scratch: Path, count: int) -> None:
    client = mongo.connect(MongoSettings(mongo_url=mongo_url), app_name="bench")
    database = client[f"bench_ops_{os.getpid()}"]
    try:
        await create_indexes(database)
        began = time.perf_counter()
        rows: list[dict[str, Any]] = []
        for row in dead_letters(count):
            rows.append(row)
            if len(rows) == BATCH:
                await database["dead_letters"].insert_many(rows, ordered=False)
                rows = []
        if rows:
            await database["dead_letters"].insert_many(rows, ordered=False)
        print(f"{count} dead letters inserted in {time.perf_counter() - began:.1f} s")
        await serve_and_ask(database, scratch)
    finally:
        await client.drop_database(database.name)
        await client.close()


async def serve_and_ask(database: mongo.Database, scratch: Path) -> None:
    issuer = Issuer()
    keys = key_source(str(issuer.write_jwks(scratch / "jwks.json")))
    await keys.start()
    settings = OpsSettings(port=0)
    tokens = TokenSettings(jwks=str(scratch / "jwks.json"))
    app = create_app(title="bench", version="1", settings=settings, verifier=TokenVerifier(keys, tokens))
    app.include_router(
        operations_routes(
            service="processor",
            database=database,
            settings=settings,
            decode=MedicalEvent.model_validate_json,
            group="bench",
            topic=TOPIC,
            topics=[TOPIC],
            replica=NoReplica(),
        )
    )
    async with (
        serving(app, max_header_bytes=16_384) as running,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}/ops/processor", timeout=60) as http,
    ):
        print("| question | who | median ms | max ms |")
        print("|---|---|---|---|")
        for organization in ("carebus", "org-1"):
            headers = {"Authorization": issuer.bearer(organization, ["operator"], lifetime=3600)}
            await ask_everything(http, headers, organization)
    await keys.stop()


async def ask_everything(http: httpx.AsyncClient, headers: dict[str, str], who: str) -> None:
    page = await http.get("/dead-letters?limit=50", headers=headers)
    cursor = page.json()["page"]["next"]
    example = page.json()["data"][0]
    redrive = {"filter": {"fingerprint": example["failure"]["fingerprint"]}, "reason": "bench"}
    for name, path, body in (
        ("summary", "/dead-letters/summary", None),
        ("list, first page", "/dead-letters?limit=50", None),
        ("list, second page", f"/dead-letters?limit=50&cursor={cursor}", None),
        ("list of one cause", f"/dead-letters?fingerprint={example['failure']['fingerprint']}", None),
        ("list of one patient", f"/dead-letters?patient={example['patient']}", None),
        ("show", f"/dead-letters/{example['id']}", None),
        ("redrive of one cause, dry", "/dead-letters/redrive", redrive),
    ):
        took: list[float] = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            answer = await http.request("GET" if body is None else "POST", path, json=body, headers=headers)
            took.append((time.perf_counter() - began) * 1000)
            assert answer.status_code == 200, answer.text
        print(f"| {name} | {who} | {statistics.median(took):.0f} | {max(took):.0f} |")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
