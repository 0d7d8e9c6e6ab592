"""The ops API on a real store: dead letters as the runtime leaves them, and the app without a server around it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
import pytest_asyncio
from fastapi import FastAPI

from carebus_common import mongo
from carebus_common.auth import TokenVerifier
from carebus_common.contracts.event import MedicalEvent
from carebus_common.http import create_app
from carebus_common.jwks import key_source
from carebus_common.logging import patient_hash
from carebus_common.ops import OpsSettings, create_indexes, operations_routes
from carebus_common.settings import MongoSettings, TokenSettings
from carebus_common.testing.tokens import Issuer
from carebus_local.parts import StackUrls
from carebus_local.testing import create_topic, random_name

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROOT = "/ops/example"


@dataclass(frozen=True)
class OneReplica:
    """What `OrderedConsumer.status()` says."""

    partitions: tuple[int, ...] = (0, 1)
    in_flight: int = 7
    store_away: bool = False
    broker_away: bool = False


@dataclass
class ThisReplica:
    current: OneReplica = field(default_factory=OneReplica)

    def status(self) -> OneReplica:
        return self.current


def dead_letter(number: int = 0, **fields: Any) -> dict[str, Any]:
    """A dead letter as the runtime writes it; what a test does not say is ordinary."""
    organization_id = fields.get("organizationId", "org-a")
    patient_id = fields.get("patientId", f"patient-{number}")
    event_id = fields.get("eventId", str(uuid4()))
    source = fields.get("source", {"topic": "events", "partition": number % 2, "offset": number})
    event = {
        "eventId": event_id,
        "organizationId": organization_id,
        "patientId": patient_id,
        "type": fields.get("type", "note"),
        "ts": "2026-03-01T11:59:00Z",
        "receivedAt": "2026-03-01T12:00:00Z",
        "data": fields.pop("data", {"name": "Jane Canary", "weight": 61.5, "fasting": True, "ward": None}),
    }
    failure = {
        "class": "ValueError",
        "message": "",
        "where": "handlers/apply.py:apply:12",
        "fingerprint": "aaaaaaaaaaaa",
        "attempts": 4,
        "firstFailedAt": NOON,
        "lastFailedAt": NOON + timedelta(minutes=1),
    }
    return {
        "_id": f"{source['topic']}-{source['partition']}-{source['offset']}",
        "status": "open",
        "reason": "permanent",
        "blocking": True,
        "organizationId": organization_id,
        "eventId": event_id,
        "patientId": patient_id,
        "patient": None if patient_id is None else patient_hash(organization_id or "", patient_id),
        "type": "note",
        "source": source,
        "key": None if patient_id is None else patient_id.encode(),
        "value": msgspec.json.encode(event),
        "headers": [
            ["ce_type", b"note"],
            ["organizationId", b"org-a"],
            ["x-nurse", b"Jane Canary"],
            ["dlq.reason", b"\xff"],
        ],
        "timestamp": 1772366400000,
        "causes": [{"class": "ValueError", "where": "handlers/apply.py:apply:12"}],
        "redrives": 0,
        "previous": None,
        "createdAt": NOON + timedelta(seconds=number),
        "publishedAt": NOON + timedelta(seconds=number),
        "edits": [],
        **fields,
        "failure": {**failure, **fields.get("failure", {})},
    }


@dataclass
class World:
    """One service's database, its ops API and who may sign for it."""

    database: mongo.Database
    app: FastAPI
    issuer: Issuer
    http: httpx.AsyncClient
    replica: ThisReplica
    bootstrap: str
    topic: str
    group: str
    make_app: Callable[[str], FastAPI]

    def without_broker(self) -> httpx.AsyncClient:
        """A client of the same service, whose broker is away."""
        transport = httpx.ASGITransport(self.make_app("127.0.0.1:1"))
        return httpx.AsyncClient(transport=transport, base_url="http://ops")

    async def insert(self, *letters: dict[str, Any]) -> list[str]:
        await self.database["dead_letters"].insert_many(list(letters))
        return [letter["_id"] for letter in letters]

    async def rows(self, collection: str) -> list[dict[str, Any]]:
        return await self.database[collection].find({}).to_list()

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        organization: str = "carebus",
        roles: Iterable[str] = ("operator",),
        **claims: Any,
    ) -> Any:
        headers = {"Authorization": self.issuer.bearer(organization, roles, **claims)}
        return await self.http.request(method, ROOT + path, json=body, headers=headers)

    async def get(self, path: str, **who: Any) -> Any:
        return await self.call("GET", path, **who)

    async def post(self, path: str, body: Any = None, **who: Any) -> Any:
        return await self.call("POST", path, {} if body is None else body, **who)

    async def data(self, path: str, **who: Any) -> Any:
        answer = await self.get(path, **who)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="session")
def jwks(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(issuer.write_jwks(tmp_path_factory.mktemp("keys") / "jwks.json"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def topic(stack: StackUrls) -> str:
    name = random_name("events")
    await create_topic(stack.kafka_bootstrap, name, partitions=2)
    return name


@pytest_asyncio.fixture
async def world(stack: StackUrls, issuer: Issuer, jwks: str, topic: str) -> AsyncIterator[World]:
    settings = OpsSettings(port=0, kafka_bootstrap=stack.kafka_bootstrap, redrive_cap=3)
    client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="ops-tests")
    keys = key_source(jwks)
    await keys.start()
    database = client[random_name("ops")]
    await create_indexes(database)
    verifier = TokenVerifier(keys, TokenSettings(jwks=jwks))
    replica, group = ThisReplica(), random_name("group")

    def make_app(bootstrap: str) -> FastAPI:
        served = settings.model_copy(update={"kafka_bootstrap": bootstrap})
        app = create_app(title="ops", version="1", settings=served, verifier=verifier)
        app.include_router(
            operations_routes(
                service="example",
                database=database,
                settings=served,
                decode=MedicalEvent.model_validate_json,
                group=group,
                topic=topic,
                topics=[topic, "not-there"],
                replica=replica,
            )
        )
        return app

    app = make_app(stack.kafka_bootstrap)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ops") as http:
        yield World(database, app, issuer, http, replica, stack.kafka_bootstrap, topic, group, make_app)
    await client.drop_database(database.name)
    await keys.stop()
    await client.close()


class Kit:
    """What tests make rows of, and when they were."""

    dead_letter = staticmethod(dead_letter)
    noon = NOON


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()
