"""The audit's rows on a real store: tampered with there, and moved to files while others write."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from carebus_claims.archive import verify_archive
from carebus_claims.audit_trail import ArchiveAhead, AuditTrail
from carebus_claims.chain import Fault, Link, hash_of, head_mac
from carebus_common import mongo
from carebus_common.settings import MongoSettings
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name

KEY = b"the key of the audit"
ORG, OTHER = "north-hospital", "north-hospital-2"
NOW = datetime(2026, 11, 25, 8, tzinfo=UTC)

Entry = dict[str, Any]


class Ledger:
    """Writes entries and heads as the service does."""

    def __init__(self, database: mongo.Database) -> None:
        self.database = database
        self.trail = AuditTrail(database, KEY)
        self.last: dict[str, Link] = {}

    def entry(self, organization: str, after: Link, **fields: Any) -> Entry:
        entry = {
            "_id": f"{organization}/{after.seq + 1:012d}",
            "organizationId": organization,
            "seq": after.seq + 1,
            "at": NOW + timedelta(minutes=after.seq + 1),
            "actor": {"id": "u-1", "role": "admin"},
            "claimId": f"c-{after.seq % 7}",
            "before": None,
            "after": {"total": "12.50"},
            "prev": after.hash,
            "publishedAt": NOW,
            **fields,
        }
        return {**entry, "hash": hash_of(entry, KEY)}

    async def write(self, count: int, organization: str = ORG) -> None:
        last = self.last.get(organization, Link())
        made = []
        for _ in range(count):
            made.append(self.entry(organization, last))
            last = Link(made[-1]["seq"], made[-1]["hash"])
        head = {"seq": last.seq, "hash": last.hash, "mac": head_mac(organization, last.seq, last.hash, KEY)}
        async with self.database.client.start_session() as session, await session.start_transaction():
            await self.database["claims_audit"].insert_many(made, session=session)
            await self.database["claims_heads"].update_one(
                {"_id": organization}, {"$set": head}, upsert=True, session=session
            )
        self.last[organization] = last


@pytest_asyncio.fixture
async def ledger(stack: StackUrls) -> AsyncIterator[Ledger]:
    client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="audit-tests")
    database = client[random_name("audit")]
    yield Ledger(database)
    await client.drop_database(database.name)
    await client.close()


async def test_whole_chains_verify_with_the_number_of_their_entries(ledger: Ledger) -> None:
    await ledger.write(30)
    await ledger.write(20, OTHER)
    assert await ledger.trail.organizations() == [ORG, OTHER]
    found = await ledger.trail.verify(ORG)
    assert (found.faults, found.entries, found.at) == ([], 30, ledger.last[ORG])
    assert (await ledger.trail.verify(OTHER)).entries == 20


async def test_an_organization_without_entries_is_whole_unless_it_has_claims(ledger: Ledger) -> None:
    assert (await ledger.trail.verify("nobody")).whole
    await ledger.database["claims"].insert_one({"_id": "nobody/c-1", "organizationId": "nobody"})
    assert (await ledger.trail.verify("nobody")).faults == [Fault(0, "head")]
    assert await ledger.trail.organizations() == ["nobody"]


def tamperings(entries: list[Entry], rng: random.Random) -> dict[str, Callable[[mongo.Database], Any]]:
    one, other = rng.sample(entries, 2)
    last = entries[-1]
    forged = {**last, "_id": f"{ORG}/{last['seq'] + 1:012d}", "seq": last["seq"] + 1, "prev": last["hash"]}

    async def swap(database: mongo.Database) -> None:
        rows = database["claims_audit"]
        for first, second in ((one, other), (other, one)):
            kept = {name: first[name] for name in ("_id", "seq", "prev")}
            await rows.replace_one({"_id": first["_id"]}, {**second, **kept})

    async def cut(database: mongo.Database) -> None:
        keep = rng.randrange(len(entries) - 1)
        await database["claims_audit"].delete_many({"organizationId": ORG, "seq": {"$gt": keep}})
        if rng.random() < 0.5 and keep:
            tail = entries[keep - 1]
            await database["claims_heads"].update_one({"_id": ORG}, {"$set": {"seq": keep, "hash": tail["hash"]}})

    def on(name: str, method: str, *arguments: Any) -> Callable[[mongo.Database], Any]:
        return lambda database: getattr(database[name], method)(*arguments)

    return {
        "edit": on("claims_audit", "update_one", {"_id": one["_id"]}, {"$set": {"after.total": "99.00"}}),
        "edit the time": on("claims_audit", "update_one", {"_id": one["_id"]}, {"$set": {"at": NOW}}),
        "edit the number": on("claims_audit", "update_one", {"_id": one["_id"]}, {"$set": {"seq": "1"}}),
        "delete": on("claims_audit", "delete_one", {"_id": one["_id"]}),
        "delete all": on("claims_audit", "delete_many", {"organizationId": ORG}),
        "swap": swap,
        "insert a copy": on("claims_audit", "insert_one", {**one, "_id": f"{one['_id']}a"}),
        "insert by another name": on("claims_audit", "insert_one", {**one, "_id": "elsewhere"}),
        "append": on("claims_audit", "insert_one", {**forged, "hash": hash_of(forged, b"another key")}),
        "cut": cut,
        "head": on("claims_heads", "update_one", {"_id": ORG}, {"$set": {"hash": one["prev"]}}),
        "head's seal": on("claims_heads", "update_one", {"_id": ORG}, {"$set": {"mac": ""}}),
        "no head": on("claims_heads", "delete_one", {"_id": ORG}),
        "archived": on(
            "claims_archives", "insert_one", {"_id": ORG, "seq": one["seq"], "hash": one["hash"], "mac": ""}
        ),
    }


async def test_what_is_done_to_the_store_is_found_and_nothing_else(ledger: Ledger) -> None:
    await ledger.write(25)
    await ledger.write(5, OTHER)
    held = {name: await ledger.database[name].find().to_list() for name in ("claims_audit", "claims_heads")}
    entries = [entry for entry in held["claims_audit"] if entry["organizationId"] == ORG]
    rng = random.Random(random.SystemRandom().randrange(2**32))
    for name in tamperings(entries, rng):
        await tamperings(copy.deepcopy(entries), rng)[name](ledger.database)
        assert not (await ledger.trail.verify(ORG)).whole, name
        assert (await ledger.trail.verify(OTHER)).whole, name
        for collection in (*held, "claims_archives"):
            await ledger.database[collection].delete_many({})
            if rows := held.get(collection):
                await ledger.database[collection].insert_many(rows)
        assert (await ledger.trail.verify(ORG)).whole, name


async def test_verifying_while_others_write_raises_no_alarm(ledger: Ledger) -> None:
    await ledger.write(50)
    done = asyncio.Event()

    async def writing() -> None:
        for _ in range(30):
            await ledger.write(3)
        done.set()

    writer = asyncio.create_task(writing())
    rounds = 0
    while not done.is_set():
        found = await ledger.trail.verify(ORG)
        assert found.whole, found.faults
        rounds += 1
    await writer
    assert rounds > 1
    assert (await ledger.trail.verify(ORG)).entries == 140


async def test_a_store_that_was_put_back_to_an_earlier_state_shows_against_an_anchor(ledger: Ledger) -> None:
    await ledger.write(10)
    anchor = (await ledger.trail.verify(ORG)).at
    del ledger.last[ORG]
    for name in ("claims_audit", "claims_heads"):
        await ledger.database[name].delete_many({})
    await ledger.write(5)
    assert (await ledger.trail.verify(ORG)).whole
    assert (await ledger.trail.verify(ORG, anchor=anchor)).faults == [Fault(10, "anchor")]


async def seqs(ledger: Ledger) -> list[int]:
    rows = await ledger.database["claims_audit"].find({"organizationId": ORG}).to_list()
    return sorted(row["seq"] for row in rows)


async def test_old_entries_move_to_files_and_the_rest_still_verifies_with_them(ledger: Ledger, tmp_path: Path) -> None:
    await ledger.write(30)
    await ledger.write(3, OTHER)
    done = await ledger.trail.archive(ORG, tmp_path, before=NOW + timedelta(minutes=21), per_file=8)
    assert [one.entries for one in done.manifests] == [8, 8, 4]
    assert done.deleted == 20
    assert await seqs(ledger) == list(range(21, 31))
    found = await ledger.trail.verify(ORG)
    assert (found.whole, found.entries, found.archived) == (True, 10, 20)
    files = verify_archive(tmp_path, ORG, KEY)
    assert (files.faults, files.at) == ([], found.after)
    await ledger.write(5)
    assert (await ledger.trail.verify(ORG)).whole
    again = await ledger.trail.archive(ORG, tmp_path, before=NOW + timedelta(minutes=31))
    assert (again.deleted, verify_archive(tmp_path, ORG, KEY).entries) == (10, 30)
    assert (await ledger.trail.verify(ORG)).entries == 5
    assert (await ledger.trail.verify(OTHER)).entries == 3


async def test_all_may_be_archived_and_writing_goes_on(ledger: Ledger, tmp_path: Path) -> None:
    await ledger.write(5)
    assert (await ledger.trail.archive(ORG, tmp_path, before=NOW + timedelta(days=1))).deleted == 5
    assert (await ledger.trail.verify(ORG)).whole
    await ledger.write(2)
    found = await ledger.trail.verify(ORG)
    assert (found.whole, found.entries, found.archived) == (True, 2, 5)
    await ledger.database["claims_audit"].delete_one({"seq": 6})
    assert not (await ledger.trail.verify(ORG)).whole


async def test_what_was_not_published_stays(ledger: Ledger, tmp_path: Path) -> None:
    await ledger.write(10)
    await ledger.database["claims_audit"].update_one({"seq": 4}, {"$set": {"publishedAt": None}})
    assert (await ledger.trail.archive(ORG, tmp_path, before=NOW + timedelta(days=1))).deleted == 3
    assert (await ledger.trail.archive(ORG, tmp_path, before=NOW + timedelta(days=1))).manifests == []


async def test_an_interrupted_archiving_goes_on_where_it_was(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the files were written, and again between two pieces of the deleting."""
    monkeypatch.setattr("carebus_claims.audit_trail._DELETED_AT_ONCE", 4)
    await ledger.write(20)
    before = NOW + timedelta(minutes=16)
    delete = AuditTrail._delete_piece
    pieces = iter([False, True, False])

    async def killed(self: AuditTrail, *arguments: Any) -> int:
        if not next(pieces):
            raise KeyboardInterrupt
        return await delete(self, *arguments)

    for left in (20, 16):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(AuditTrail, "_delete_piece", killed)
            await ledger.trail.archive(ORG, tmp_path, before=before, per_file=10)
        assert len(await seqs(ledger)) == left
        assert (await ledger.trail.verify(ORG)).whole
    done = await ledger.trail.archive(ORG, tmp_path, before=before, per_file=10)
    assert (done.manifests, done.deleted) == ([], 11)
    assert await seqs(ledger) == [16, 17, 18, 19, 20]
    assert verify_archive(tmp_path, ORG, KEY).faults == []
    assert (await ledger.trail.verify(ORG)).whole


async def test_a_broken_chain_or_another_archive_is_not_written_to(ledger: Ledger, tmp_path: Path) -> None:
    await ledger.write(10)
    await ledger.trail.archive(ORG, tmp_path / "a", before=NOW + timedelta(minutes=4))
    with pytest.raises(ArchiveAhead, match="were moved elsewhere"):
        await ledger.trail.archive(ORG, tmp_path / "b", before=NOW + timedelta(minutes=8))
    await ledger.database["claims_audit"].update_one({"seq": 6}, {"$set": {"claimId": "another"}})
    with pytest.raises(Exception, match="broken at 6: altered"):
        await ledger.trail.archive(ORG, tmp_path / "a", before=NOW + timedelta(minutes=9))
    assert await seqs(ledger) == [4, 5, 6, 7, 8, 9, 10]
