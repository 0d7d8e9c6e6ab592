"""Claims on a real store: events written as the runtime writes them, and the app without a server around it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from pymongo import ReplaceOne

from carebus_claims.handlers import record_history
from carebus_claims.repository import HISTORIES, PATIENTS, HistoryRepository
from carebus_claims.routes import history_routes
from carebus_claims.settings import Settings
from carebus_common import mongo
from carebus_common.auth import TokenVerifier
from carebus_common.consumer.change import Delivery, Position
from carebus_common.contracts.processed import ProcessedEvent
from carebus_common.http import create_app
from carebus_common.http.cursor import CursorCodec
from carebus_common.jwks import key_source
from carebus_common.testing.tokens import Issuer
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Events:
    """Makes processed events; what a test does not say is ordinary."""

    def __call__(self, **fields: Any) -> ProcessedEvent:
        processing = {"message": "stored", "processedAt": NOON + timedelta(seconds=1), **fields.pop("processing", {})}
        return ProcessedEvent.model_validate(
            {
                "eventId": uuid4(),
                "organizationId": "org-a",
                "patientId": "patient-1",
                "type": "note",
                "ts": NOON,
                "receivedAt": NOON,
                "data": {},
                "stay": None,
                **fields,
                "processing": processing,
            }
        )


@dataclass
class World:
    """One database, its app and who may sign for it."""

    database: mongo.Database
    repository: HistoryRepository
    app: FastAPI
    issuer: Issuer
    http: httpx.AsyncClient
    states: dict[str, Any] = field(default_factory=dict)

    async def apply(self, events: Iterable[ProcessedEvent]) -> None:
        """Write what the runtime writes for these events, in this order."""
        rows: list[dict[str, Any]] = []
        patients: dict[str, dict[str, Any]] = {}
        for event in events:
            patient = f"{event.organization_id}/{event.patient_id}"
            delivery = Delivery(event, Position("topic", 0, len(rows)), NOON)
            change = record_history(self.states.get(patient), delivery)
            self.states[patient] = change.state
            rows.append(
                {
                    **change.row,
                    "_id": f"{event.organization_id}/{event.event_id}",
                    "organizationId": event.organization_id,
                    "eventId": str(event.event_id),
                    "patientId": event.patient_id,
                    "source": {"topic": "topic", "partition": 0, "offset": len(rows)},
                    "contentHash": b"hash",
                    "messages": [],
                    "processedAt": NOON,
                    "processingDurationMs": 0.1,
                }
            )
            patients[patient] = {
                "organizationId": event.organization_id,
                "patientId": event.patient_id,
                "position": {"topic": "topic", "partition": 0, "offset": len(rows)},
                "parked": False,
                "state": change.state,
            }
        await self.database[HISTORIES].insert_many(rows)
        await self.database[PATIENTS].bulk_write(
            [ReplaceOne({"_id": patient}, row, upsert=True) for patient, row in patients.items()]
        )

    async def get(
        self, url: str, *, organization: str = "org-a", roles: Iterable[str] = ("admin",), **claims: Any
    ) -> Any:
        token = self.issuer.bearer(organization, roles, **claims)
        return await self.http.get(url, headers={"Authorization": token})


@pytest.fixture(scope="session")
def events() -> Events:
    return Events()


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="session")
def jwks(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(issuer.write_jwks(tmp_path_factory.mktemp("keys") / "jwks.json"))


@pytest_asyncio.fixture
async def world(stack: StackUrls, issuer: Issuer, jwks: str) -> AsyncIterator[World]:
    settings = Settings(port=0, jwks=jwks, mongo_url=stack.mongo_url)
    client = mongo.connect(settings, app_name="claims-tests")
    keys = key_source(jwks)
    await keys.start()
    database = client[random_name("claims")]
    repository = HistoryRepository(database)
    await repository.create_indexes()
    app = create_app(title="claims", version="1", settings=settings, verifier=TokenVerifier(keys, settings))
    app.include_router(history_routes(repository, CursorCodec("a key")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://claims") as http:
        yield World(database, repository, app, issuer, http)
    await client.drop_database(database.name)
    await keys.stop()
    await client.close()
