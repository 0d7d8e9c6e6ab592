"""The stand-in answers as the operations API on a real store does, so that it cannot lie to the other tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from fastapi import FastAPI

from carebus_cli.client import GatewayClient, Refused
from carebus_common import mongo
from carebus_common.auth import TokenVerifier
from carebus_common.contracts.event import MedicalEvent
from carebus_common.http import create_app
from carebus_common.jwks import key_source
from carebus_common.logging import patient_hash
from carebus_common.ops import OpsSettings, operations_routes
from carebus_common.settings import MongoSettings, TokenSettings
from carebus_common.testing.tokens import Issuer
from carebus_local.parts import StackUrls
from carebus_local.testing import create_topic, random_name

from .serving import serving
from .stand_in_ops import FakeOps

RUN = "00000000-0000-4000-8000-00000000abcd"
LETTER = "medical.events.v1-3-0"


@dataclass(frozen=True)
class OneReplica:
    partitions: tuple[int, ...] = (0,)
    in_flight: int = 0
    store_away: bool = False
    broker_away: bool = False

    def status(self) -> OneReplica:
        return self


@dataclass
class Side:
    """One of the two, and a token for whoever asks."""

    url: str
    tokens: dict[str, str] = field(default_factory=dict)
    topic: str = "medical.events.v1"

    async def ask(self, who: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer's shape: names and kinds, no values; of a refusal status and code."""
        async with GatewayClient(self.url, self.tokens.get(who, who)) as client:
            try:
                answer = await client.ask(method, f"/ops/processor{path.replace('TOPIC', self.topic)}", body=body)
            except Refused as refused:
                return refused.status, refused.code
        return shape(answer)


def shape(value: Any) -> Any:
    """Of lists the first item; null, texts and numbers look alike, since an answer may have either."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__ if isinstance(value, bool) else "scalar"


def stored(now: datetime) -> dict[str, Any]:
    """The dead letter that the stand-in has, as the runtime stores it."""
    event = {
        "eventId": "00000000-0000-4000-8000-000000000000",
        "organizationId": "north-hospital",
        "patientId": "patient-who-is-secret",
        "type": "observation",
        "ts": "2026-03-01T11:59:00Z",
        "receivedAt": "2026-03-01T12:00:00Z",
        "data": {"note": "a-value-that-is-secret", "rate": 131},
    }
    failed = {"firstFailedAt": now, "lastFailedAt": now, "attempts": 1}
    return {
        "_id": LETTER,
        "status": "open",
        "reason": "permanent",
        "blocking": True,
        **{name: event[name] for name in ("organizationId", "eventId", "patientId", "type")},
        "patient": patient_hash("north-hospital", "patient-who-is-secret"),
        "source": {"topic": "medical.events.v1", "partition": 3, "offset": 0},
        "key": b"patient-who-is-secret",
        "value": msgspec.json.encode(event),
        "headers": [["ce_type", b"observation"], ["x-theirs", b"secret"]],
        "timestamp": 1772366400000,
        "failure": {"class": "KeyError", "message": "", "where": "a:1", "fingerprint": "f-1", **failed},
        "causes": [{"class": "LookupError", "where": "a:2"}],
        "redrives": 0,
        "previous": None,
        "createdAt": now,
        "publishedAt": now,
        "edits": [],
        "edited": None,
    }


@pytest.fixture
async def real(stack: StackUrls, tmp_path: Path) -> AsyncIterator[Side]:
    issuer = Issuer()
    jwks = str(issuer.write_jwks(tmp_path / "jwks.json"))
    keys = key_source(jwks)
    await keys.start()
    client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="cli-tests")
    database, topic = client[random_name("ops")], random_name("events")
    await create_topic(stack.kafka_bootstrap, topic, partitions=1)
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka_bootstrap)
    await producer.start()
    await producer.send_and_wait(topic, b'{"data": {"note": "secret"}}', key=b"p-1")
    await producer.stop()
    settings = OpsSettings(port=0, kafka_bootstrap=stack.kafka_bootstrap)
    app: FastAPI = create_app(
        title="ops", version="1", settings=settings, verifier=TokenVerifier(keys, TokenSettings(jwks=jwks))
    )
    app.include_router(
        operations_routes(
            service="processor",
            database=database,
            settings=settings,
            decode=MedicalEvent.model_validate_json,
            group=random_name("group"),
            topic=topic,
            topics=[topic],
            replica=OneReplica(),
        )
    )
    await database["dead_letters"].insert_one(stored(datetime.now(UTC) - timedelta(minutes=1)))

    def token(organization: str, *roles: str, sub: str = "ops-1") -> str:
        return issuer.bearer(organization, roles, sub=sub).removeprefix("Bearer ")

    tokens = {
        "t0ken": token("carebus", "operator"),
        "second": token("carebus", "operator", sub="ops-2"),
        "phi": token("carebus", "operator", "operator-phi"),
        "hospital": token("south-hospital", "operator"),
        "nobody": token("carebus", "admin"),
    }
    async with serving(app) as url:
        await until_the_lag_is_known(url, tokens["t0ken"])
        yield Side(url, tokens, topic)
    await client.drop_database(database.name)
    await client.close()
    await keys.stop()


async def until_the_lag_is_known(url: str, token: str) -> None:
    """A broker that has just started knows no groups yet."""
    async with GatewayClient(url, token) as client, asyncio.timeout(60):
        while (await client.ask("GET", "/ops/processor/consumer"))["data"]["lag"] is None:
            await asyncio.sleep(0.2)


@pytest.fixture
async def stand_in(ops: FakeOps) -> Side:
    ops.put(datetime.now(UTC) - timedelta(minutes=1))
    ops.record()
    ops.callers["hospital"] = ops.callers["hospital"].__class__(organization="south-hospital")
    return Side(ops.url)


def chosen(**more: Any) -> dict[str, Any]:
    return {"reason": "fixed", **more}


async def test_the_stand_in_answers_as_the_real_one(real: Side, stand_in: Side) -> None:
    until = {"until": "2099-01-01T00:00:00.000Z"}
    asked: list[tuple[str, str, str, dict[str, Any] | None]] = [
        ("t0ken", "GET", "/dead-letters/summary", None),
        ("t0ken", "GET", "/dead-letters?status=all&limit=200", None),
        ("t0ken", "GET", "/dead-letters?status=lost", None),
        ("t0ken", "GET", "/dead-letters?limit=201", None),
        ("t0ken", "GET", "/dead-letters?color=red", None),
        ("t0ken", "GET", "/dead-letters?patient=p-1&organizationId=north-hospital", None),
        ("phi", "GET", "/dead-letters?patient=p-1", None),
        ("nobody", "GET", "/dead-letters", None),
        ("t0ken", "GET", f"/dead-letters/{LETTER}", None),
        ("hospital", "GET", f"/dead-letters/{LETTER}", None),
        ("t0ken", "POST", f"/dead-letters/{LETTER}/reveal", {"reason": "x"}),
        ("phi", "POST", f"/dead-letters/{LETTER}/reveal", {}),
        ("phi", "POST", f"/dead-letters/{LETTER}/reveal", {"reason": "x"}),
        ("t0ken", "GET", "/requests", None),
        ("t0ken", "POST", "/dead-letters/redrive", chosen(filter=until)),
        ("t0ken", "POST", "/dead-letters/redrive", chosen(filter={})),
        ("t0ken", "POST", "/dead-letters/redrive", {"filter": until}),
        ("t0ken", "POST", "/dead-letters/redrive", chosen(filter=until, limit=20_001)),
        ("t0ken", "POST", "/dead-letters/redrive", chosen(ids=[LETTER, "medical.events.v1-3-9"])),
        ("t0ken", "POST", "/dead-letters/redrive", chosen(ids=[])),
        ("t0ken", "GET", f"/runs/{RUN}", None),
        ("t0ken", "GET", f"/runs/{RUN}?outcomes=false", None),
        ("t0ken", "GET", f"/runs/{RUN}?outcome=false", None),
        ("t0ken", "GET", "/runs/the-last-one", None),
        ("nobody", "GET", f"/runs/{RUN}", None),
        ("hospital", "POST", "/dead-letters/redrive", chosen(ids=[LETTER])),
        ("t0ken", "POST", "/dead-letters/redrive", chosen(ids=[LETTER], run="the-last-one")),
        ("phi", "POST", f"/dead-letters/{LETTER}/edit", {"value": {"patientId": "another"}, "reason": "x"}),
        ("t0ken", "GET", "/consumer", None),
        ("hospital", "GET", "/consumer", None),
        ("t0ken", "POST", "/consumer/resume", {"reason": "x"}),
        ("t0ken", "GET", "/purges", None),
        ("t0ken", "POST", "/purges", {"before": "2026-01-01T00:00:00.000Z", "reason": "x"}),
        ("t0ken", "GET", "/purges", None),
        ("second", "POST", "/purges/00000000-0000-4000-8000-0000000000ff/approve", {}),
        ("t0ken", "GET", "/topics/TOPIC/tail?limit=20", None),
        ("t0ken", "GET", "/topics/nonsense/tail", None),
        ("t0ken", "POST", "/dead-letters/discard", chosen(filter=until, dryRun=False, limit=1, run=RUN)),
    ]
    for who, method, path, body in asked:
        expected = await real.ask(who, method, path, body)
        assert await stand_in.ask(who, method, path, body) == expected, (who, method, path, body)
