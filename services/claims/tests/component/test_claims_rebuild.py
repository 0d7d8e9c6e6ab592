"""Claims and figures built anew from their changes, while writers go on: nothing true is lost, nothing false stays."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
from bson import Decimal128
from pymongo.errors import PyMongoError

from carebus_claims.claims_rebuild import ClaimsRebuild, Marks
from carebus_claims.figures_delta import Numbers, added, flat, nested, of_claim
from carebus_common import mongo
from carebus_common.settings import MongoSettings
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name

ORG, OTHER = "org-a", "org-b"
STATUSES = ["submitted", "under_review", "pending", "approved", "paid"]
NOW = datetime(2026, 11, 25, 8, tzinfo=UTC)

Document = dict[str, Any]


def document_of(organization_id: str, claim: Mapping[str, Any]) -> Document:
    return {
        **claim,
        "_id": f"{organization_id}/{claim['claimId']}",
        "organizationId": organization_id,
        "createdAt": datetime.fromisoformat(claim["createdAt"]),
        "total": Decimal128(claim["total"]),
        "paid": Decimal128(claim["paid"]),
    }


@dataclass
class Service:
    """Writes claims as the service does: claim, audit and head in one transaction; a relay publishes in order."""

    database: mongo.Database
    topic: list[Document] = field(default_factory=list)
    read: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    relaying: bool = True
    random: random.Random = field(default_factory=lambda: random.Random(5))

    async def write(self, claim_id: str, organization: str = ORG) -> None:
        """Create the claim, or take it a step further."""
        async with self.lock:
            while True:
                try:
                    async with self.database.client.start_session() as session, await session.start_transaction():
                        await self._write(claim_id, organization, session)
                    break
                except PyMongoError as error:
                    if not error.has_error_label("TransientTransactionError"):
                        raise
                    await asyncio.sleep(0.01)
        if self.relaying:
            await self.relay()

    async def _write(self, claim_id: str, organization: str, session: Any) -> None:
        name = f"{organization}/{claim_id}"
        stored = await self.database["claims"].find_one({"_id": name}, session=session)
        head = await self.database["claims_heads"].find_one({"_id": organization}, session=session)
        head = head or {"seq": 0, "figures": {}}
        before = as_json(stored) if stored else None
        if before is None:
            after = {
                "claimId": claim_id,
                "version": 1,
                "status": "submitted",
                "createdAt": NOW.isoformat(),
                "assignedProcessorId": self.random.choice([None, "u-1", "u-2"]),
                "total": f"{self.random.randrange(1, 99999) / 100:.2f}",
                "paid": "0.00",
            }
        else:
            status = STATUSES[min(STATUSES.index(before["status"]) + 1, 4)]
            paid = before["total"] if status == "paid" else "0.00"
            after = {**before, "version": before["version"] + 1, "status": status, "paid": paid}
        row = document_of(organization, after)
        seq = head["seq"] + 1
        moved = of_claim(row) if stored is None else added(of_claim(row), of_claim(stored), -1)
        entry = {"organizationId": organization, "seq": seq, "claimId": claim_id, "before": before, "after": after}
        await self.database["claims"].replace_one({"_id": name}, row, upsert=True, session=session)
        await self.database["claims_audit"].insert_one(
            {"_id": f"{organization}/{seq:012d}", **entry, "publishedAt": None}, session=session
        )
        await self.database["claims_heads"].update_one(
            {"_id": organization},
            {"$set": {"seq": seq, "figures": nested(added(flat(head["figures"]), moved))}},
            upsert=True,
            session=session,
        )

    async def relay(self) -> None:
        async with self.lock:
            async for entry in self.database["claims_audit"].find({"publishedAt": None}).sort("_id"):
                self.topic.append({name: entry[name] for name in entry if name not in {"_id", "publishedAt"}})
                await self.database["claims_audit"].update_one({"_id": entry["_id"]}, {"$set": {"publishedAt": NOW}})

    async def start_rebuild(self, *, patience: float = 30.0, lost: int = 0) -> ClaimsRebuild:
        self.read = lost

        async def catch_up() -> None:
            new, self.read = self.topic[self.read :], len(self.topic)
            # Another order, as partitions have it, and one of them twice, as after a kill.
            await rebuild.take([*reversed(new), *new[:1]])

        rebuild = ClaimsRebuild(self.database, document_of, catch_up, patience=patience)
        await rebuild.begin()
        await catch_up()
        return rebuild

    async def content(self) -> list[Any]:
        found: list[Any] = await self.database["claims"].find().sort("_id").to_list()
        heads = await self.database["claims_heads"].find().sort("_id").to_list()
        return [*found, *((head["_id"], head["seq"], flat(head["figures"])) for head in heads)]


def as_json(row: Document) -> Document:
    kept = {name: value for name, value in row.items() if name not in {"_id", "organizationId"}}
    money = {name: f"{row[name].to_decimal():.2f}" for name in ("total", "paid")}
    return {**kept, **money, "createdAt": row["createdAt"].isoformat()}


@pytest_asyncio.fixture
async def service(stack: StackUrls) -> AsyncIterator[Service]:
    client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="rebuild-tests")
    database = client[random_name("rebuild")]
    made = Service(database)
    for number in range(40):
        await made.write(f"c-{number % 13}")
        if number % 4 == 0:
            await made.write(f"c-{number % 3}", OTHER)
    yield made
    await client.drop_database(database.name)
    await client.close()


async def test_what_the_service_wrote_is_what_the_topic_says(service: Service) -> None:
    rebuild = await service.start_rebuild()
    assert await rebuild.organizations() == [ORG, OTHER]
    found = await rebuild.compare(ORG)
    assert found.same
    assert (found.seq, found.lost, found.claims.found.rows) == (40, 0, 13)
    assert str(found.claims.found) == str(found.claims.expected)
    await rebuild.end()
    assert "claims_shadow" not in await service.database.list_collection_names()


def on(name: str, method: str, *arguments: Any) -> Callable[[mongo.Database], Any]:
    return lambda database: getattr(database[name], method)(*arguments)


CLAIM = f"{ORG}/c-4"
TAMPERINGS = [
    on("claims", "update_one", {"_id": CLAIM}, {"$set": {"total": Decimal128("1.00")}}),
    on("claims", "update_one", {"_id": CLAIM}, {"$set": {"status": "paid"}}),
    on("claims", "update_one", {"_id": CLAIM}, {"$inc": {"version": -1}}),
    on("claims", "update_one", {"_id": CLAIM}, {"$inc": {"version": 7}}),
    on("claims", "update_one", {"_id": CLAIM}, {"$set": {"version": "1"}}),
    on("claims", "delete_one", {"_id": CLAIM}),
    on("claims", "insert_one", {"_id": f"{ORG}/forged", "organizationId": ORG, "version": 1, "status": "paid"}),
    on("claims_heads", "update_one", {"_id": ORG}, {"$set": {"figures.statuses.paid.total": Decimal128("1.00")}}),
    on("claims_heads", "update_one", {"_id": ORG}, {"$set": {"figures.workload": {"u-9": 3}}}),
    on("claims_heads", "update_one", {"_id": ORG}, {"$unset": {"figures": 1}}),
]


@pytest.mark.parametrize("tamper", TAMPERINGS)
async def test_what_was_tampered_with_is_found_and_mended(
    service: Service, tamper: Callable[[mongo.Database], Any]
) -> None:
    before = await service.content()
    await tamper(service.database)
    rebuild = await service.start_rebuild()
    found = await rebuild.compare(ORG)
    assert len(found.claims.ids) + bool(found.figures) == 1
    assert (await rebuild.compare(OTHER)).same
    assert await rebuild.mend(ORG, found) == 1
    assert await service.content() == before
    assert (await rebuild.compare(ORG)).same


async def test_writers_go_on_while_all_of_it_is_mended(service: Service) -> None:
    """Claims and figures are corrupted, and every claim that nobody corrupted is written to all the time."""
    await service.database["claims"].update_many(
        {"organizationId": ORG, "claimId": {"$in": ["c-1", "c-2", "c-3"]}}, {"$set": {"total": Decimal128("0.01")}}
    )
    await service.database["claims"].delete_one({"_id": CLAIM})
    await service.database["claims_heads"].update_one(
        {"_id": ORG}, {"$set": {"figures.statuses.paid.paid": Decimal128("77.00")}}
    )
    written: list[str] = []
    stop = asyncio.Event()

    async def writer(first: int) -> None:
        number = first
        while not stop.is_set():
            claim_id = f"n-{number // 3}-{first}" if number % 2 else f"c-{5 + number % 8}"
            await service.write(claim_id)
            written.append(claim_id)
            number += 1

    writers = [asyncio.create_task(writer(number)) for number in range(3)]
    rebuild = await service.start_rebuild()
    mended = rounds = 0
    while True:
        rounds += 1
        found = await rebuild.compare(ORG)
        assert not found.lagging
        if found.same:
            break
        assert set(found.claims.ids) <= {f"{ORG}/c-{n}" for n in (1, 2, 3, 4)}
        mended += await rebuild.mend(ORG, found)
        assert rounds < 10
    stop.set()
    await asyncio.gather(*writers)
    assert mended == 5
    assert len(written) > 10, "they never had to stop"

    found = await (await service.start_rebuild()).compare(ORG)
    assert found.same
    sums: Numbers = {}
    async for claim in service.database["claims"].find({"organizationId": ORG}):
        sums = added(sums, of_claim(claim))
    head = await service.database["claims_heads"].find_one({"_id": ORG})
    assert head is not None
    assert flat(head["figures"]) == sums


async def test_a_claim_that_was_changed_since_is_left_out_of_the_mending(service: Service) -> None:
    await service.database["claims"].update_one({"_id": CLAIM}, {"$set": {"assignedProcessorId": "u-9"}})
    rebuild = await service.start_rebuild()
    found = await rebuild.compare(ORG)
    assert found.claims.different == [CLAIM]
    await service.write("c-4")
    newer = await service.database["claims"].find_one({"_id": CLAIM})
    await rebuild.mend(ORG, found)
    assert await service.database["claims"].find_one({"_id": CLAIM}) == newer


async def test_a_relay_that_is_behind_is_said_and_nothing_is_called_different(service: Service) -> None:
    service.relaying = False
    await service.write("c-1")
    rebuild = await service.start_rebuild(patience=0.2)
    found = await rebuild.compare(ORG)
    assert (found.lagging, found.claims.ids, found.figures, found.same) == (True, [], {}, False)
    await service.relay()
    assert (await rebuild.compare(ORG)).same


async def test_what_the_topic_does_not_reach_back_to_is_left_alone(service: Service) -> None:
    before, newest = await service.content(), f"{ORG}/c-12"
    rebuild = await service.start_rebuild(lost=40)
    found = await rebuild.compare(ORG)
    assert found.same
    assert found.lost > 20
    assert found.beyond == 13 - found.claims.expected.rows
    await service.database["claims"].update_one({"_id": newest}, {"$set": {"total": Decimal128("9.00")}})
    found = await rebuild.compare(ORG)
    assert found.claims.different == [newest]
    await rebuild.mend(ORG, found)
    assert await service.content() == before


async def test_an_organization_without_a_head_is_said_to_have_none(service: Service) -> None:
    await service.database["claims_heads"].delete_one({"_id": ORG})
    found = await (await service.start_rebuild()).compare(ORG)
    assert (found.no_head, found.same) == (True, False)


def test_marks_tell_what_came_and_what_did_not() -> None:
    marks = Marks()
    assert [marks.add(seq) for seq in (3, 1, 3, 5)] == [True, True, False, True]
    assert (marks.last, marks.missing, marks.settled) == (5, 2, 1)
    assert (3 in marks, 4 in marks, 9 in marks) == (True, False, False)
    assert Marks().last == Marks().settled == 0


def test_figures_come_apart_and_together_again() -> None:
    figures = {
        "statuses": {"paid": {"count": 2, "total": Decimal128("12.50"), "paid": Decimal128("12.00")}},
        "open": {"2026-11-25": {"pending": 3}},
        "workload": {"u-1": 1},
    }
    assert nested(flat(figures)) == figures
    assert added(flat(figures), flat(figures), -1) == {}
    assert flat({"open": {"x": {"pending": 0}}, "bad": "text", "worse": True}) == {}
    assert added({("a",): Decimal(1)}, {("b",): Decimal(2)}) == {("a",): Decimal(1), ("b",): Decimal(2)}
