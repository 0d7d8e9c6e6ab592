"""`carebus audit` and `carebus claims rebuild`, on a real store and a real broker, past every service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from bson import Decimal128
from typer.testing import CliRunner, Result

from carebus_claims.claim import Claim, Line, Status, move, new_claim
from carebus_claims.claim_documents import ClaimChange, Origin
from carebus_claims.claim_store import ClaimStore, Tenant
from carebus_cli.main import app
from carebus_common import mongo
from carebus_common.settings import MongoSettings
from carebus_local.parts import StackUrls
from carebus_local.testing import create_topic, random_name

KEY = "a key of this test"
NOW = datetime(2026, 11, 25, 8, tzinfo=UTC)


@dataclass
class Books:
    """Organizations' claims in a database of their own, and a topic with their changes."""

    stack: StackUrls
    database: mongo.Database
    topic: str
    events: str
    producer: AIOKafkaProducer
    claims: dict[tuple[str, str], Claim] = field(default_factory=dict)

    async def write(self, organization: str, claims: int) -> None:
        """Enter claims and take each a step further, a transaction for each ten, and publish the changes."""
        tenant = ClaimStore(self.database, audit_key=KEY.encode()).of(Tenant(organization))
        origin = Origin("u-1", "admin", "request", "r-1", NOW)
        for begin in range(0, claims, 10):
            made = [self.claim(organization) for _ in range(begin, min(begin + 10, claims))]
            moved = [move(claim, Status.UNDER_REVIEW, NOW, reason="seen") for claim in made]
            await tenant.write([ClaimChange(None, claim, "created") for claim in made], origin)
            changes = [ClaimChange(a, b, "status-changed") for a, b in zip(made, moved, strict=True)]
            await tenant.write(changes, origin)
        await self.publish()

    def claim(self, organization: str) -> Claim:
        line = Line("84100007", 1, Decimal("136.80"), code_system="http://snomed.info/sct")
        claim_id = str(uuid4())
        return new_claim(
            Claim(organization, claim_id, 1, Status.SUBMITTED, "p-1", "USD", (line,), NOW, NOW, "u-1", service_date=NOW)
        )

    async def publish(self) -> None:
        async for row in self.database["claims_audit"].find({"publishedAt": None}).sort("_id"):
            value = msgspec.json.encode({**row, "publishedAt": None})
            await self.producer.send_and_wait(self.topic, value, key=row["patientId"].encode())
            await self.database["claims_audit"].update_one({"_id": row["_id"]}, {"$set": {"publishedAt": NOW}})

    async def carebus(self, *arguments: str, **variables: str) -> Result:
        environment = {
            "CAREBUS_MONGO_URL": self.stack.mongo_url,
            "CAREBUS_KAFKA_BOOTSTRAP": self.stack.kafka_bootstrap,
            "CAREBUS_CLAIMS_DATABASE": self.database.name,
            "CAREBUS_CLAIMS_CHANGES_TOPIC": self.topic,
            "CAREBUS_CLAIMS_TOPIC": self.events,
            "CAREBUS_AUDIT_KEY": KEY,
            **variables,
        }
        runner = CliRunner(env=environment)
        return await asyncio.to_thread(lambda: runner.invoke(app, list(arguments)))

    async def lines(self, *arguments: str, code: int = 0, **variables: str) -> dict[str, dict[str, Any]]:
        """What a command prints as JSON, by organization."""
        result = await self.carebus(*arguments, "--json", **variables)
        assert result.exit_code == code, result.output
        return {line["organizationId"]: line for line in map(json.loads, result.stdout.splitlines())}


@pytest_asyncio.fixture
async def books(stack: StackUrls) -> AsyncIterator[Books]:
    client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="maintenance-tests")
    database = client[random_name("claims")]
    topic, events = random_name("changes"), random_name("events")
    for name in (topic, events):
        await create_topic(stack.kafka_bootstrap, name, partitions=3)
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka_bootstrap)
    await producer.start()
    made = Books(stack, database, topic, events, producer)
    await made.write("north", 15)
    await made.write("south", 3)
    yield made
    await producer.stop()
    await client.drop_database(database.name)
    await client.close()


async def test_a_whole_audit_verifies_and_tells_an_anchor(books: Books) -> None:
    result = await books.carebus("audit", "verify", "--direct")
    assert result.exit_code == 0, result.output
    assert "north: whole, 30 entries, anchor 30:" in result.stdout
    assert "south: whole, 6 entries, anchor 6:" in result.stdout
    verdicts = await books.lines("audit", "verify", "--direct", "--organization", "north")
    at = verdicts["north"]["at"]
    anchored = ("audit", "verify", "--direct", "--organization", "north", "--anchor")
    assert (await books.carebus(*anchored, f"{at['seq']}:{at['hash']}")).exit_code == 0
    other = await books.carebus(*anchored, f"{at['seq']}:{'0' * 64}")
    assert (other.exit_code, "entry 30: anchor" in other.stderr) == (1, True)


async def test_a_broken_audit_is_told_with_the_entry(books: Books) -> None:
    await books.database["claims_audit"].update_one({"_id": f"north/{7:012d}"}, {"$set": {"actor.id": "nobody"}})
    result = await books.carebus("audit", "verify", "--direct")
    assert result.exit_code == 1
    assert "north: BROKEN, 30 entries" in result.stdout
    assert "south: whole" in result.stdout
    assert "  entry 7: altered" in result.stderr


async def test_another_key_verifies_nothing(books: Books, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("another\n")
    result = await books.carebus("audit", "verify", "--direct", "--audit-key-file", str(tmp_path / "key"))
    assert result.exit_code == 1
    assert "and 21 more" in result.stderr
    missing = await books.carebus("audit", "verify", "--direct", "--audit-key-file", str(tmp_path / "no"))
    assert (missing.exit_code, "No such file" in missing.stderr) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--direct", "--anchor", f"1:{'0' * 64}"),
        ("--direct", "--organization", "north", "--anchor", "1:x"),
        ("--archive", "somewhere"),
    ],
)
async def test_options_that_make_no_sense_are_refused(books: Books, arguments: tuple[str, ...]) -> None:
    assert (await books.carebus("audit", "verify", *arguments)).exit_code == 2


async def test_archived_entries_verify_together_with_what_remains(books: Books, tmp_path: Path) -> None:
    archive = str(tmp_path / "archive")
    moved = await books.lines("audit", "archive", "--before", "2026-11-26", "--to", archive)
    assert {name: one["moved"] for name, one in moved.items()} == {"north": 30, "south": 6}
    await books.write("north", 5)
    verdict = (await books.lines("audit", "verify", "--direct", "--archive", archive))["north"]
    assert (verdict["entries"], verdict["archived"], verdict["archive"]["entries"]) == (10, 30, 30)
    told = await books.carebus("audit", "archive", "--before", "2026-11-24", "--to", archive)
    assert told.stdout == "nothing to move\n"
    (file,) = (tmp_path / "archive" / "north").glob("*.gz")
    file.write_bytes(file.read_bytes()[:-20])
    broken = await books.carebus("audit", "verify", "--direct", "--archive", archive)
    assert broken.exit_code == 1
    assert f"file {file.name}, entry (none): file" in broken.stderr
    refused = await books.carebus("audit", "archive", "--before", "2026-11-26", "--to", archive)
    assert (refused.exit_code, "is not whole" in refused.stderr) == (1, True)


async def test_read_models_that_are_right_are_the_same(books: Books) -> None:
    result = await books.carebus("claims", "rebuild")
    assert result.exit_code == 0, result.output
    assert "north: same, 15 claims, 0 events of 0 patients" in result.stdout


def corrupt(name: str, method: str, *arguments: Any) -> Callable[[mongo.Database], Any]:
    return lambda database: getattr(database[name], method)(*arguments)


async def test_read_models_that_were_corrupted_are_told_and_replaced(books: Books) -> None:
    rows = await books.database["claims"].find({"organizationId": "north"}).sort("_id").to_list()
    heads = await books.database["claims_heads"].find({}, {"mended": 0}).to_list()
    for spoil in (
        corrupt("claims", "update_one", {"_id": rows[0]["_id"]}, {"$set": {"total": Decimal128("0.01")}}),
        corrupt("claims", "delete_one", {"_id": rows[1]["_id"]}),
        corrupt("claims", "insert_one", {**rows[2], "_id": "north/forged", "claimId": "forged"}),
        corrupt("claims_heads", "update_one", {"_id": "north"}, {"$set": {"figures.open": {}}}),
    ):
        await spoil(books.database)
    told = await books.carebus("claims", "rebuild")
    assert told.exit_code == 1
    assert "north: DIFFERENT" in told.stdout
    assert "  claims: 1 missing, 1 different, 1 surplus" in told.stdout
    assert "  figures: 1 numbers were not those of the claims" in told.stdout
    assert "Nothing was replaced: add --swap." in told.stderr
    done = (await books.lines("claims", "rebuild", "--swap"))["north"]
    assert done["replaced"] == 4
    assert await books.database["claims"].find({"organizationId": "north"}).sort("_id").to_list() == rows
    assert await books.database["claims_heads"].find({}, {"mended": 0}).to_list() == heads
    again = (await books.lines("claims", "rebuild"))["north"]
    assert (again["good"], again["claims"]["hash"]) == (True, again["claims"]["expectedHash"])
    assert sorted(await books.database.list_collection_names()) == ["claims", "claims_audit", "claims_heads"]


async def test_a_topic_that_is_not_there_is_told(books: Books) -> None:
    result = await books.carebus("claims", "rebuild", CAREBUS_CLAIMS_CHANGES_TOPIC="nowhere")
    assert result.exit_code == 2
    assert "the broker has no topic nowhere" in result.stderr


async def test_a_store_that_is_away_is_told(books: Books) -> None:
    url = "mongodb://127.0.0.1:1/?directConnection=true"
    result = await books.carebus("audit", "verify", "--direct", CAREBUS_MONGO_URL=url)
    assert result.exit_code == 2
    assert "The store cannot be used: ServerSelectionTimeoutError" in result.stderr


async def test_claims_come_in_as_they_went_out(books: Books) -> None:
    """The shadow's rows are the store's to the last type, times without milliseconds and empty fields included."""
    odd = replace(books.claim("north"), provider_id="dr-1", service_date=None, lines=(Line("1", 3, Decimal("0.10")),))
    tenant = ClaimStore(books.database, audit_key=KEY.encode()).of(Tenant("north"))
    await tenant.write([ClaimChange(None, new_claim(odd), "created")], Origin("u", "admin", "request", "r", NOW))
    await books.publish()
    assert (await books.lines("claims", "rebuild"))["north"]["good"]
