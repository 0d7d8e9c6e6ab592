"""Claims, their audit and their figures on a real store: one transaction, one chain, exact figures."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from carebus_claims.audit_trail import AuditTrail
from carebus_claims.claim import Claim, Line, Status, VersionConflict, amend, move, new_claim, shown
from carebus_claims.claim_documents import ClaimChange, Origin, claim_from_row, claim_row
from carebus_claims.claim_queries import ClaimQuery, Place, Scope, place_of, queries_for
from carebus_claims.claim_store import ClaimStore, Tenant, TenantClaims, TenantRequired
from carebus_claims.claim_writes import AlreadyExists
from carebus_claims.relay import ChangeRelay
from carebus_claims.requests import Answer, InProgress, KeyReused
from carebus_common import mongo
from carebus_common.kafka import BrokerAway
from carebus_common.messages import Message, Receipt
from carebus_common.settings import MongoSettings
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = b"a key of the test"


def claim(organization: str = "org-a", **fields: Any) -> Claim:
    ordinary: dict[str, Any] = {
        "organization_id": organization,
        "claim_id": str(uuid4()),
        "version": 1,
        "status": Status.SUBMITTED,
        "patient_id": "p1",
        "currency": "CAD",
        "lines": (Line("410620009", 1, Decimal("136.80")), Line("99213", 2, Decimal("0.20"), "CPT")),
        "created_at": NOON,
        "updated_at": NOON,
        "created_by": "u-1",
    }
    return new_claim(Claim(**{**ordinary, **fields}))


def origin(at: datetime = NOON) -> Origin:
    return Origin("u-1", "admin", "request", "r-1", at, "r-1")


@pytest_asyncio.fixture(loop_scope="session")
async def database(stack: StackUrls) -> AsyncIterator[mongo.Database]:
    client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="test")
    name = random_name("claims")
    await ClaimStore(client[name], audit_key=KEY).create_indexes()
    yield client[name]
    await client.drop_database(name)
    await client.close()


@pytest.fixture
def store(database: mongo.Database) -> ClaimStore:
    return ClaimStore(database, audit_key=KEY)


@pytest.fixture
def claims(store: ClaimStore) -> TenantClaims:
    return store.of(Tenant("org-a"))


async def create(claims: TenantClaims, *new: Claim) -> list[Claim]:
    await claims.write([ClaimChange(None, one, "created") for one in new], origin())
    return list(new)


async def whole(database: mongo.Database, organization: str = "org-a") -> int:
    """How many entries the audit has; fails unless it is one chain."""
    found = await AuditTrail(database, KEY).verify(organization)
    assert found.faults == []
    return found.entries


def test_a_claim_is_the_same_after_the_store() -> None:
    one = claim(service_date=NOON, external_id="x", paid_at=NOON)
    assert claim_from_row(claim_row(one)) == one


@pytest.mark.parametrize("nothing", ["", None])
def test_no_query_can_be_written_without_an_organization(nothing: Any) -> None:
    with pytest.raises(TenantRequired):
        Tenant(nothing)


async def test_a_claim_its_audit_and_the_figures_are_written_together(
    claims: TenantClaims, database: mongo.Database
) -> None:
    (one,) = await create(claims, claim(assigned_processor_id="u-7"))
    later = move(one, Status.UNDER_REVIEW, NOON + timedelta(hours=1), reason="looked at")
    await claims.write([ClaimChange(one, later, "status-changed", "looked at")], origin())
    assert await claims.get(one.claim_id) == later
    entries = await claims.audit_of(one.claim_id, limit=10)
    assert [(e.seq, e.action, e.version) for e in entries] == [(1, "created", 1), (2, "status-changed", 2)]
    assert entries[1].after == shown(later)
    assert {c.path: (c.before, c.after) for c in entries[1].changes} == {
        "status": ("submitted", "under_review"),
        "statusReason": (None, "looked at"),
    }
    head = await claims.head()
    assert head.seq == 2
    assert head.figures["statuses"]["under_review"]["count"] == 1
    assert str(head.figures["statuses"]["under_review"]["total"]) == "137.00"
    assert "submitted" not in head.figures["statuses"]
    assert head.figures["workload"] == {"u-7": 1}
    assert head.figures["open"] == {"2026-03-01": {"under_review": 1}}
    assert await whole(database) == 2


async def test_another_organization_sees_nothing_of_a_claim(store: ClaimStore, claims: TenantClaims) -> None:
    (one,) = await create(claims, claim())
    other = store.of(Tenant("org-b"))
    assert await other.get(one.claim_id) is None
    assert await other.get_many([one.claim_id]) == {}
    assert await other.page(ClaimQuery(), limit=10) == []
    assert await other.audit_of(one.claim_id, limit=10) == []
    assert await other.changes_after(0, limit=10) == []
    with pytest.raises(ValueError, match="another organization"):
        await other.write([ClaimChange(None, claim("org-a"), "created")], origin())


async def test_a_change_of_an_outdated_claim_writes_nothing(claims: TenantClaims, database: mongo.Database) -> None:
    one, two = await create(claims, claim(), claim())
    await claims.write([ClaimChange(one, amend(one, NOON, payer_id="x"), "updated")], origin())
    with pytest.raises(VersionConflict) as caught:
        await claims.write(
            [
                ClaimChange(two, amend(two, NOON, payer_id="z"), "updated"),
                ClaimChange(one, amend(one, NOON, payer_id="y"), "updated"),
            ],
            origin(),
        )
    assert caught.value.claim_ids == {one.claim_id}
    assert await claims.get(two.claim_id) == two
    assert await whole(database) == 3


async def test_a_claim_that_exists_is_not_created_again(claims: TenantClaims, database: mongo.Database) -> None:
    one, two = await create(claims, claim(external_id="x-1"), claim())
    again, same_external, new = replace(two), claim(external_id="x-1"), claim()
    with pytest.raises(AlreadyExists) as caught:
        await create(claims, again, same_external, new)
    assert caught.value.claim_ids == {again.claim_id, same_external.claim_id}
    assert await claims.get(new.claim_id) is None
    assert await whole(database) == 2
    assert one.external_id == "x-1"


async def test_a_claim_is_not_given_the_external_id_of_another_one(
    claims: TenantClaims, database: mongo.Database
) -> None:
    _, one, two = await create(claims, claim(external_id="x-1"), claim(), claim())

    def changes(*pairs: tuple[Claim, str]) -> list[ClaimChange]:
        return [ClaimChange(before, amend(before, NOON, external_id=to), "updated") for before, to in pairs]

    for attempt, refused in [
        (changes((one, "x-1")), one),
        (changes((one, "x-2"), (two, "x-2")), two),
        (changes((one, "x-1"), (two, "x-2")), one),
    ]:
        with pytest.raises(AlreadyExists) as caught:
            await claims.write(attempt, origin())
        assert caught.value.claim_ids == {refused.claim_id}
    assert await claims.get_many([one.claim_id, two.claim_id]) == {one.claim_id: one, two.claim_id: two}
    assert await whole(database) == 3


async def test_concurrent_writers_in_two_processes_keep_one_chain_and_exact_figures(
    database: mongo.Database,
) -> None:
    replicas = [ClaimStore(database, audit_key=KEY).of(Tenant("org-a")) for _ in range(2)]
    await asyncio.gather(*(create(replicas[n % 2], claim(), claim()) for n in range(20)))
    assert await whole(database) == 40
    head = await replicas[0].head()
    assert head.figures["statuses"]["submitted"]["count"] == 40
    assert str(head.figures["statuses"]["submitted"]["total"]) == "5480.00"


async def test_of_fifty_changes_of_one_version_one_wins(database: mongo.Database) -> None:
    replicas = [ClaimStore(database, audit_key=KEY).of(Tenant("org-a")) for _ in range(2)]
    (one,) = await create(replicas[0], claim())

    async def change(n: int) -> bool:
        try:
            changed = amend(one, NOON, payer_id=f"payer-{n}")
            await replicas[n % 2].write([ClaimChange(one, changed, "updated")], origin())
        except VersionConflict:
            return False
        return True

    won = await asyncio.gather(*(change(n) for n in range(50)))
    assert sum(won) == 1
    assert await whole(database) == 2


@pytest.mark.parametrize("sort", ["createdAt", "total", "updatedAt"])
@pytest.mark.parametrize("descending", [True, False])
async def test_pages_show_each_claim_once_in_order_while_others_are_added(
    claims: TenantClaims, sort: Any, descending: bool
) -> None:
    rng = random.Random(1)

    def some(n: int) -> Claim:
        at = NOON + timedelta(seconds=rng.randrange(5))
        line = Line("a", 1, Decimal(rng.randrange(4)))
        return claim(created_at=at, updated_at=at, lines=(line,), patient_id=f"p{n % 3}")

    before = await create(claims, *(some(n) for n in range(60)))
    query = ClaimQuery(sort=sort, descending=descending)
    seen: list[Claim] = []
    after: Place | None = None
    while page := await claims.page(query, limit=7, after=after):
        seen += page
        after = place_of(page[-1], query)
        await create(claims, some(1))
    places = [(place_of(one, query).value, one.claim_id) for one in seen]
    assert places == sorted(places, reverse=descending)
    assert len(set(places)) == len(places)
    assert {one.claim_id for one in before} <= {one.claim_id for one in seen}


async def test_a_query_finds_what_its_conditions_say(claims: TenantClaims) -> None:
    rows = [
        claim(
            patient_id=f"p{n % 2}",
            provider_id=f"d{n % 3}",
            assigned_processor_id=f"u{n % 5}",
            created_at=NOON + timedelta(days=n),
            lines=(Line("a", 1, Decimal(n)),),
        )
        for n in range(30)
    ]
    await create(claims, *rows)

    async def found(**conditions: Any) -> list[int]:
        page = await claims.page(ClaimQuery(descending=False, **conditions), limit=100)
        return [int(one.total) for one in page]

    assert await found(patient_id="p1", provider_id="d1") == [n for n in range(30) if n % 2 == 1 and n % 3 == 1]
    assert await found(min_total=Decimal(3), max_total=Decimal(5)) == [3, 4, 5]
    assert await found(created_from=NOON + timedelta(days=2), created_to=NOON + timedelta(days=4)) == [2, 3]
    assert await found(scope=Scope("assignedProcessorId", "u4")) == [4, 9, 14, 19, 24, 29]
    assert await found(scope=Scope("assignedProcessorId", "u4"), assigned_processor_id="u3") == []
    assert await found(scope=Scope("patientId", None)) == []
    assert await found(claim_ids=(rows[3].claim_id, rows[1].claim_id, str(uuid4()))) == [1, 3]
    assert await found(statuses=(Status.PAID, Status.DENIED)) == []


async def test_every_filter_and_sort_has_an_index(claims: TenantClaims, database: mongo.Database) -> None:
    await create(claims, *(claim() for _ in range(5)))
    conditions: list[dict[str, Any]] = [
        {},
        {"statuses": (Status.SUBMITTED,)},
        {"patient_id": "p1"},
        {"provider_id": "d1"},
        {"assigned_processor_id": "u1"},
        {"created_from": NOON},
        {"min_total": Decimal(1), "sort": "total"},
        {"sort": "updatedAt"},
        {"statuses": (Status.SUBMITTED,), "sort": "total"},
    ]
    for condition in conditions:
        query = ClaimQuery(**condition)
        for place in (None, Place(Decimal(1) if query.sort == "total" else NOON, str(uuid4()))):
            for where in queries_for("org-a", query, place):
                plan = await database["claims"].find(where).sort(query.order).explain()
                assert "COLLSCAN" not in str(plan["queryPlanner"]["winningPlan"]), (condition, where)


async def test_a_key_is_answered_once_and_for_one_request_only(claims: TenantClaims) -> None:
    requests = claims.requests
    assert await requests.begin("u-1", "k", "fingerprint") is None
    with pytest.raises(InProgress):
        await requests.begin("u-1", "k", "fingerprint")
    answer = Answer("u-1", "k", 201, b"{}")
    await claims.write([ClaimChange(None, claim(), "created")], origin(), answer=answer)
    assert await requests.begin("u-1", "k", "fingerprint") == answer
    with pytest.raises(KeyReused):
        await requests.begin("u-1", "k", "another")
    assert await requests.begin("u-2", "k", "another") is None
    await requests.forget("u-2", "k")
    assert await requests.begin("u-2", "k", "a third") is None


class Broker:
    """Takes messages until it is away; as the publisher, it stores nothing after the first that failed."""

    def __init__(self) -> None:
        self.taken: list[Message] = []
        self.room = 0

    async def publish_each(self, messages: list[Message]) -> list[Receipt | BrokerAway]:
        taken = messages[: self.room]
        self.taken += taken
        self.room -= len(taken)
        away = [BrokerAway("away")] * (len(messages) - len(taken))
        return [*(Receipt(0, n) for n, _ in enumerate(taken)), *away]


async def test_the_relay_publishes_each_change_in_order_and_goes_on_after_an_outage(
    claims: TenantClaims, database: mongo.Database
) -> None:
    await create(claims, *(claim() for _ in range(10)))
    broker = Broker()
    relay = ChangeRelay(database, broker, "changes")  # type: ignore[arg-type]
    for broker.room in (3, 0, 4):
        with pytest.raises(BrokerAway):
            await relay.publish_some()
    broker.room = 100
    await relay.publish_some()
    ids = [message.value for message in broker.taken]
    assert [f'"id":"org-a/{n}"'.encode() in (value or b"") for n, value in enumerate(ids, 1)] == [True] * 10
    assert await database["claims_audit"].count_documents({"publishedAt": None}) == 0
    assert await whole(database) == 10
