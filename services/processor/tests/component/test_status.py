"""Where an event is, from rows as the runtime leaves them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from carebus_common import mongo
from carebus_common.settings import MongoSettings
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name
from carebus_processor.status import EventStatus

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ORG = "org-a"


@dataclass
class Committed:
    offsets: dict[int, int | None] = field(default_factory=dict)

    async def committed(self, partition: int) -> int | None:
        return self.offsets.get(partition)


@dataclass
class World:
    database: mongo.Database
    status: EventStatus
    committed: Committed
    event_id: UUID = field(default_factory=uuid4)

    async def insert(self, collection: str, **row: Any) -> None:
        ids = {"organizationId": ORG, "eventId": str(self.event_id)}
        await self.database[collection].insert_one({"_id": str(uuid4()), **ids, **row})

    async def letter(self, status: str, outcome: str | None = None) -> None:
        told = {"outcome": {"status": outcome, "at": NOON}} if outcome else {}
        await self.insert("dead_letters", status=status, type="note", **told)

    async def found(self, *, organization: str = ORG, offset: int | None = None) -> Any:
        at = None if offset is None else 0
        found = await self.status.find(organization, self.event_id, at, offset)
        return found["status"] if found else None


@pytest_asyncio.fixture
async def world(stack: StackUrls) -> AsyncIterator[World]:
    client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="status-tests")
    database = client[random_name("processor")]
    committed = Committed()
    yield World(database, EventStatus(database, committed), committed)
    await client.drop_database(database.name)
    await client.close()


async def test_an_event_that_waits_behind_another_one_is_parked(world: World) -> None:
    await world.insert("parked_events", type="note")

    assert await world.found() == "parked"
    assert await world.found(organization="org-b") is None


@pytest.mark.parametrize(
    ("letters", "status"),
    [
        ([("open", None)], "dead-lettered"),
        ([("redriven", None)], "dead-lettered"),
        ([("redriven", "retrying")], "dead-lettered"),
        ([("redriven", "dead-lettered"), ("open", None)], "dead-lettered"),
        ([("discarded", None)], "discarded"),
        ([("discarded", "discarded")], "discarded"),
        ([("redriven", "dead-lettered"), ("discarded", None)], "discarded"),
        ([("redriven", "discarded")], "discarded"),
    ],
)
async def test_an_event_that_could_not_be_applied_is_what_became_of_its_dead_letters(
    world: World, letters: list[tuple[str, str | None]], status: str
) -> None:
    for letter in letters:
        await world.letter(*letter)

    assert await world.found() == status
    assert await world.found(organization="org-b") is None


async def test_what_took_effect_is_processed_whatever_dead_letters_there_are(world: World) -> None:
    await world.letter("open")
    row = {"_id": f"{ORG}/{world.event_id}", "result": {"status": "processed"}, "type": "note", "late": False}
    await world.insert("processed_events", **row, ts=NOON, receivedAt=NOON, processedAt=NOON)

    assert await world.found() == "processed"


async def test_a_discarded_events_row_has_only_its_ids(world: World) -> None:
    await world.insert(
        "processed_events",
        _id=f"{ORG}/{world.event_id}",
        source={"topic": "t", "partition": 0, "offset": 1},
        contentHash=b"",
        messages=[],
        discardedAt=NOON,
        processedAt=NOON,
    )

    assert await world.status.find(ORG, world.event_id, None, None) == {
        "eventId": str(world.event_id),
        "status": "discarded",
    }
    assert await world.found(organization="org-b") is None


async def test_an_event_that_is_nowhere_is_accepted_until_the_committed_offset_passes_it(world: World) -> None:
    world.committed.offsets[0] = 5

    assert await world.found(offset=5) == "accepted"
    assert await world.found(offset=4) is None
    assert await world.found() is None


async def test_an_event_applied_between_two_looks_is_found_by_the_second(world: World) -> None:
    row = {"_id": f"{ORG}/{world.event_id}", "result": {"status": "processed"}, "type": "note", "late": False}

    async def committed(_partition: int) -> int:
        await world.insert("processed_events", **row, ts=NOON, receivedAt=NOON, processedAt=NOON)
        return 9

    world.committed.committed = committed  # type: ignore[method-assign, assignment]

    assert await world.found(offset=4) == "processed"
