"""Events move claims on a real store: in the transaction of the history, once, and between everybody else's writes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from carebus_claims.audit_trail import AuditTrail
from carebus_claims.claim import Claim, Line, Status, VersionConflict, amend, new_claim
from carebus_claims.claim_documents import ClaimChange, Origin
from carebus_claims.claim_effects import ClaimEffects
from carebus_claims.claim_queries import ClaimQuery
from carebus_claims.claim_store import ClaimStore, Tenant
from carebus_claims.handlers import record_history
from carebus_claims.repository import HISTORIES, PATIENTS
from carebus_common import mongo
from carebus_common.consumer import Moved, Store
from carebus_common.consumer.change import Delivery, Position
from carebus_common.consumer.store import Writes
from carebus_common.contracts.processed import ProcessedEvent
from carebus_common.settings import MongoSettings
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = b"a key of the test"
ORIGIN = Origin("u-1", "admin", "request", "r-1", NOON, "r-1")


def claim(organization: str = "org-a", patient: str = "patient-1", **fields: Any) -> Claim:
    return new_claim(
        Claim(
            organization_id=organization,
            claim_id=str(uuid4()),
            version=1,
            status=Status.SUBMITTED,
            patient_id=patient,
            currency="CAD",
            lines=(Line("99213", 1, Decimal("10.00")),),
            created_at=NOON,
            updated_at=NOON,
            created_by="u-1",
            **fields,
        )
    )


@dataclass
class Process:
    """One process of the service: its claims, and its consumer's store."""

    database: mongo.Database
    around: list[str] = field(default_factory=list)
    wakes: int = 0

    def __post_init__(self) -> None:
        self.claims = ClaimStore(self.database, audit_key=KEY, writing=self._writing)
        self.store = Store(
            self.database, inbox=HISTORIES, patients=PATIENTS, effects=ClaimEffects(self.claims, self._wake)
        )

    def _wake(self) -> None:
        self.wakes += 1

    @asynccontextmanager
    async def _writing(self, organization_id: str, claim_ids: Any) -> AsyncIterator[None]:
        self.around.append(f"begin {organization_id} {len(set(claim_ids))}")
        try:
            yield
        finally:
            self.around.append(f"end {organization_id}")

    async def create(self, *claims: Claim) -> None:
        by_organization: dict[str, list[Claim]] = {}
        for one in claims:
            by_organization.setdefault(one.organization_id, []).append(one)
        for name, new in by_organization.items():
            await self.claims.of(Tenant(name)).write([ClaimChange(None, one, "created") for one in new], ORIGIN)
        self.around.clear()

    async def apply(self, *events: ProcessedEvent) -> None:
        """One batch of the runtime's."""
        writes = Writes()
        for event in events:
            change = record_history(None, Delivery(event, Position("t", 0, 0), datetime.now(UTC)))
            document = {**change.row, "_id": f"{event.organization_id}/{event.event_id}"}
            writes.inbox.append(document)
            writes.effects += ((document, effect) for effect in change.effects)
        await self.store.write(writes)

    async def apply_until_through(self, *events: ProcessedEvent) -> None:
        """As the runtime does when rows moved."""
        for attempt in range(200):
            try:
                return await self.apply(*events)
            except Moved:
                await asyncio.sleep(0.005 * min(attempt, 20))
        raise AssertionError("never through")

    async def statuses(self, organization: str = "org-a") -> Counter[str]:
        rows = await self.claims.of(Tenant(organization)).page(ClaimQuery(), limit=1000)
        return Counter(str(row.status) for row in rows)


@pytest_asyncio.fixture(loop_scope="session")
async def database(stack: StackUrls) -> AsyncIterator[mongo.Database]:
    client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="test")
    name = random_name("claims")
    await ClaimStore(client[name], audit_key=KEY).create_indexes()
    yield client[name]
    await client.drop_database(name)
    await client.close()


@pytest.fixture
def process(database: mongo.Database) -> Process:
    return Process(database)


async def whole(database: mongo.Database, organization: str = "org-a") -> int:
    """How many entries the audit has; fails unless it is one chain."""
    found = await AuditTrail(database, KEY).verify(organization)
    assert found.faults == []
    return found.entries


async def test_an_event_moves_its_patients_claims_with_an_audit_entry_each(process: Process, events: Any) -> None:
    mine, others, elsewhere = claim(), claim(patient="patient-2"), claim("org-b")
    await process.create(mine, others, elsewhere)
    event = events(type="ADMISSION")
    await process.apply(event)
    tenant = process.claims.of(Tenant("org-a"))
    moved = await tenant.get(mine.claim_id)
    assert moved is not None
    assert (moved.status, moved.version, moved.status_reason) == (Status.UNDER_REVIEW, 2, "admission")
    assert await tenant.get(others.claim_id) == others
    assert await process.claims.of(Tenant("org-b")).get(elsewhere.claim_id) == elsewhere
    entry = (await tenant.audit_of(mine.claim_id, limit=10))[-1]
    assert (entry.actor_id, entry.role, entry.cause_kind) == ("system", "system", "event")
    assert (entry.cause_id, entry.at) == (f"admission-{event.event_id}", moved.updated_at)
    assert (await tenant.head()).figures["statuses"]["under_review"]["count"] == 1
    assert await whole(process.database) == 3
    assert process.around == ["begin org-a 1", "end org-a"]
    assert process.wakes == 1


async def test_the_events_of_one_batch_move_a_claim_step_by_step(process: Process, events: Any) -> None:
    one, untouched = claim(), claim(encounter_id="another")
    await process.create(one, untouched, claim("org-b"))
    kinds = ["admission", "treatment-initiated", "note", "discharge"]
    batch = [events(type=kind, data={"encounterId": "e-1"}) for kind in kinds]
    await process.apply(*batch, events(type="admission", organizationId="org-b"))
    entries = await process.claims.of(Tenant("org-a")).audit_of(one.claim_id, limit=10)
    assert [(e.version, e.after["status"], e.cause_id.rsplit("-", 5)[0]) for e in entries[1:]] == [
        (2, "under_review", "admission"),
        (3, "pending", "treatment-initiated"),
        (4, "approved", "discharge"),
    ]
    assert await process.statuses() == {"approved": 1, "under_review": 1}
    assert await process.statuses("org-b") == {"under_review": 1}
    assert (await whole(process.database), await whole(process.database, "org-b")) == (6, 2)
    assert process.around == ["begin org-a 2", "begin org-b 1", "end org-b", "end org-a"]


async def test_a_batch_with_an_event_that_had_its_effect_moves_nothing(process: Process, events: Any) -> None:
    await process.create(claim(), claim(patient="patient-2"))
    known = events(type="admission")
    await process.apply(known)
    with pytest.raises(Moved):
        await process.apply(known, events(type="admission", patientId="patient-2"))
    assert await process.statuses() == {"under_review": 1, "submitted": 1}
    assert await process.database[HISTORIES].count_documents({}) == 1
    assert await whole(process.database) == 3
    # A write that failed is through with the cache all the same.
    assert process.around[-2:] == ["begin org-a 1", "end org-a"]


async def test_events_that_find_no_claim_write_nothing_and_keep_nobody_waiting(process: Process, events: Any) -> None:
    await process.apply(events(type="admission"), events(type="discharge"))
    assert await process.database["claims_heads"].count_documents({}) == 0
    assert process.around == []


async def test_a_batch_does_not_wait_long_for_a_writer_of_its_organization(process: Process, events: Any) -> None:
    await process.create(claim())
    tenant = process.claims.of(Tenant("org-a"))
    async with tenant.turn:
        with pytest.raises(Moved):
            await process.apply(events(type="admission"))
    await process.apply(events(type="admission"))
    assert await process.statuses() == {"under_review": 1}


async def test_writers_racing_with_the_events_of_two_processes_keep_one_chain(
    database: mongo.Database, events: Any
) -> None:
    processes = [Process(database), Process(database)]
    claims = [claim(patient=f"p{n % 10}") for n in range(30)]
    await processes[0].create(*claims)

    def history() -> Iterator[ProcessedEvent]:
        for kind in ("admission", "treatment-initiated", "discharge"):
            for n in range(10):
                yield events(type=kind, patientId=f"p{n}")

    async def amends(process: Process, number: int) -> int:
        tenant, done = process.claims.of(Tenant("org-a")), 0
        for one in claims[number::2]:
            for _ in range(20):
                current = await tenant.get(one.claim_id)
                if current is None or current.status is Status.APPROVED:
                    break
                try:
                    change = ClaimChange(current, amend(current, NOON, payer_id=f"payer-{number}"), "updated")
                    await tenant.write([change], ORIGIN)
                except VersionConflict:
                    continue
                done += 1
                break
        return done

    async def consumes(process: Process, number: int) -> None:
        mine = [event for event in history() if int(event.patient_id[1:]) % 2 == number]
        for begin in range(0, len(mine), 3):
            await process.apply_until_through(*mine[begin : begin + 3])

    amended = asyncio.gather(*(amends(p, n) for n, p in enumerate(processes)))
    await asyncio.gather(*(consumes(p, n) for n, p in enumerate(processes)))
    assert await processes[0].statuses() == {"approved": 30}
    assert await whole(database) == 30 + 90 + sum(await amended)
    figures = (await processes[0].claims.of(Tenant("org-a")).head()).figures
    assert figures["statuses"]["approved"]["count"] == 30
    assert set(figures["statuses"]) == {"approved"}
