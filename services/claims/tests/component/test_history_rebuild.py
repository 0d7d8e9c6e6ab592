"""Histories built anew from the log beside the ones that serve: what was tampered with is found and mended."""

from __future__ import annotations

import copy
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from aiokafka import ConsumerRecord

from carebus_claims.handlers import record_history
from carebus_claims.history_rebuild import HistoryFindings, HistoryRebuild, LogEnds
from carebus_claims.repository import HISTORIES, PATIENTS
from carebus_claims.settings import Settings
from carebus_claims.subscribers import subscription
from carebus_common import mongo
from carebus_common.consumer import Delivery
from carebus_common.consumer.records import read_record
from carebus_common.consumer.rows import source_document
from carebus_common.contracts.processed import ProcessedEvent
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name

ORG, OTHER = "org-a", "org-b"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SUBSCRIPTION = subscription(Settings(port=0, jwks="x"))


@dataclass
class Ward:
    """A log in memory, and a store in which a consumer has applied it up to `applied`."""

    database: mongo.Database
    log: list[ConsumerRecord] = field(default_factory=list)
    applied: int = 0
    begin: int = 0
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def event(self, patient: str = "p-1", organization: str = ORG, **data: Any) -> ConsumerRecord:
        number = next(self.numbers)
        event = ProcessedEvent.model_validate(
            {
                "eventId": UUID(int=number),
                "organizationId": organization,
                "patientId": patient,
                "type": "note",
                "ts": NOON + timedelta(minutes=number),
                "receivedAt": NOON,
                "data": data,
                "stay": None,
                "processing": {"message": "stored", "processedAt": NOON},
            }
        )
        return self.append(patient, event.model_dump_json(by_alias=True).encode())

    def append(self, key: str, value: bytes) -> ConsumerRecord:
        topic, offset = SUBSCRIPTION.topic, len(self.log)
        record = ConsumerRecord(topic, 0, offset, 0, 0, key.encode(), value, None, 0, len(value), ())
        self.log.append(record)
        return record

    async def consume(self) -> None:
        """Apply what was not yet, as the runtime does."""
        for raw in self.log[self.applied :]:
            _, record = read_record(SUBSCRIPTION, raw)
            assert record.event is not None
            event, source = record.event, source_document(record.position)
            patient = f"{event.organization_id}/{event.patient_id}"
            whose = {"organizationId": event.organization_id, "patientId": event.patient_id}
            change = record_history(self.states.get(patient), Delivery(event, record.position, NOON))
            row = {**change.row, **whose, "_id": record.inbox_id, "eventId": str(event.event_id), "source": source}
            assert change.state is not None
            self.states[patient] = dict(change.state)
            await self.database[HISTORIES].insert_one({**row, "contentHash": record.content_hash, "processedAt": NOON})
            state = {**whose, "position": source, "parked": False, "state": change.state}
            await self.database[PATIENTS].replace_one({"_id": patient}, state, upsert=True)
        self.applied = len(self.log)

    @property
    def ends(self) -> LogEnds:
        return LogEnds({0: self.begin}, {0: len(self.log)}, {0: self.applied})

    async def rebuild(self, organization: str = ORG) -> tuple[HistoryRebuild, HistoryFindings]:
        rebuild = HistoryRebuild(self.database, SUBSCRIPTION)
        await rebuild.begin()
        await rebuild.take(self.log[self.begin :])
        return rebuild, await rebuild.compare(organization, self.ends)

    async def content(self) -> list[Any]:
        return [
            await self.database[name]
            .find({}, {"processedAt": 0, "messages": 0, "processingDurationMs": 0})
            .sort("_id")
            .to_list()
            for name in (HISTORIES, PATIENTS)
        ]


@pytest_asyncio.fixture
async def ward(stack: StackUrls) -> AsyncIterator[Ward]:
    client = mongo.connect(Settings(port=0, jwks="x", mongo_url=stack.mongo_url), app_name="rebuild-tests")
    database = client[random_name("rebuild")]
    made = Ward(database)
    for number in range(30):
        made.event(f"p-{number % 4}", OTHER if number % 5 == 0 else ORG, number=number)
    await made.consume()
    yield made
    await client.drop_database(database.name)
    await client.close()


async def test_what_the_consumer_made_is_what_the_log_says(ward: Ward) -> None:
    rebuild, found = await ward.rebuild()
    assert found.same
    assert (found.rows.found.rows, str(found.rows.found)) == (24, str(found.rows.expected))
    assert (found.patients.found.rows, str(found.patients.found)) == (4, str(found.patients.expected))
    assert await rebuild.organizations() == [ORG, OTHER]
    await rebuild.end()
    assert sorted(await ward.database.list_collection_names()) == [HISTORIES, PATIENTS]


def tampering(name: str, method: str, *arguments: Any) -> Callable[[mongo.Database], Any]:
    return lambda database: getattr(database[name], method)(*arguments)


ROW, PATIENT = f"{ORG}/{UUID(int=7)}", f"{ORG}/p-3"


@pytest.mark.parametrize(
    "tamper",
    [
        tampering(HISTORIES, "delete_one", {"_id": ROW}),
        tampering(HISTORIES, "update_one", {"_id": ROW}, {"$set": {"data": {"number": 8}}}),
        tampering(HISTORIES, "update_one", {"_id": ROW}, {"$set": {"ts": NOON}}),
        tampering(HISTORIES, "update_one", {"_id": ROW}, {"$unset": {"processing": 1}}),
        tampering(PATIENTS, "update_one", {"_id": PATIENT}, {"$set": {"state.eventTotal": 99}}),
        tampering(PATIENTS, "update_one", {"_id": PATIENT}, {"$set": {"state": None}}),
        tampering(PATIENTS, "delete_one", {"_id": PATIENT}),
    ],
)
async def test_what_was_tampered_with_is_found_and_mended(ward: Ward, tamper: Callable[[mongo.Database], Any]) -> None:
    before = await ward.content()
    await tamper(ward.database)
    rebuild, found = await ward.rebuild()
    assert len([*found.rows.ids, *found.patients.ids]) == 1
    assert await rebuild.mend(found) == 1
    assert await ward.content() == before
    assert (await rebuild.compare(ORG, ward.ends)).same


async def test_a_row_that_no_event_made_is_removed(ward: Ward) -> None:
    before = await ward.content()
    row = copy.deepcopy(before[0][0])
    await ward.database[HISTORIES].insert_one({**row, "_id": f"{row['organizationId']}/forged", "eventId": "forged"})
    rebuild, found = await ward.rebuild(row["organizationId"])
    assert len(found.rows.surplus) == 1
    await rebuild.mend(found)
    assert await ward.content() == before


async def test_what_the_consumer_has_not_come_to_is_no_difference(ward: Ward) -> None:
    ward.event("p-1", more=1)
    ward.event("p-9", new=1)
    _, found = await ward.rebuild()
    assert found.same
    assert found.pending == 1


async def test_a_patient_who_moves_on_is_looked_at_again_and_loses_nothing(ward: Ward) -> None:
    await ward.database[PATIENTS].update_one({"_id": PATIENT}, {"$set": {"state.eventTotal": 99}})
    rebuild, found = await ward.rebuild()
    newer = ward.event("p-3", later=1)
    await ward.consume()
    assert await rebuild.mend(found) == 0, "the position is another"
    found = await rebuild.compare(ORG, LogEnds({0: 0}, {0: 30}, {0: 31}))
    assert (found.pending, found.patients.ids, found.rows.surplus) == (1, [], [])
    await rebuild.take([newer])
    found = await rebuild.compare(ORG, ward.ends)
    assert found.same, "the consumer wrote a summary of its own over the one that was tampered with"


async def test_an_event_that_comes_twice_counts_once(ward: Ward) -> None:
    ward.append("p-1", ward.log[1].value)
    ward.applied += 1
    _, found = await ward.rebuild()
    assert found.same


async def test_edited_and_discarded_events_are_as_the_operator_left_them(ward: Ward) -> None:
    edited, discarded = ward.event("p-1", wrong=1), ward.event("p-1", bad=1)
    right = edited.value.replace(b'"wrong":1', b'"right":1')
    assert right != edited.value
    original = ward.log
    ward.log = [
        *original[:-2],
        ConsumerRecord(
            *[
                *(getattr(edited, n) for n in ("topic", "partition", "offset", "timestamp", "timestamp_type", "key")),
                right,
                None,
                0,
                0,
                (),
            ]
        ),
    ]
    await ward.consume()
    ward.log, ward.applied = original, len(original)
    source = {"topic": SUBSCRIPTION.topic, "partition": 0}
    _, record = read_record(SUBSCRIPTION, discarded)
    await ward.database["dead_letters"].insert_many(
        [
            {"_id": "1", "status": "redriven", "source": {**source, "offset": edited.offset}, "edited": right},
            {
                "_id": "2",
                "status": "discarded",
                "organizationId": ORG,
                "eventId": record.inbox_id.removeprefix(f"{ORG}/"),
                "source": {**source, "offset": discarded.offset},
            },
        ]
    )
    await ward.database[HISTORIES].insert_one({"_id": record.inbox_id, "organizationId": ORG, "discardedAt": NOON})
    _, found = await ward.rebuild()
    assert found.same


async def test_a_parked_patient_is_left_alone(ward: Ward) -> None:
    ward.event("p-3", fails=1)
    ward.applied += 1
    await ward.database[PATIENTS].update_one({"_id": PATIENT}, {"$set": {"parked": {"head": 1}}})
    _, found = await ward.rebuild()
    assert found.same
    assert found.parked == 1


async def test_what_the_log_does_not_reach_back_to_is_left_alone(ward: Ward) -> None:
    ward.begin = 10
    _, found = await ward.rebuild()
    assert found.same
    assert found.beyond == 8 + 4, "rows, and the summaries that they were part of"
    await ward.database[HISTORIES].delete_one({"_id": f"{ORG}/{UUID(int=17)}"})
    _, found = await ward.rebuild()
    assert found.rows.missing == [f"{ORG}/{UUID(int=17)}"]
