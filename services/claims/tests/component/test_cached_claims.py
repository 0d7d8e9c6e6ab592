"""Claims of a real store behind the cache: what a write, here or in another process, does to what was read before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from hashlib import sha256
from uuid import uuid4

import pytest
import pytest_asyncio

from carebus_claims.cache import CLAIM, CLAIMS, KEYS, ClaimsCache
from carebus_claims.claim import Claim, Line, Status, VersionConflict, amend, move, new_claim, pay
from carebus_claims.claim_documents import Action, ClaimChange, Origin
from carebus_claims.claim_queries import ClaimQuery
from carebus_claims.claim_store import ClaimStore, Tenant, TenantClaims
from carebus_common import mongo
from carebus_common.settings import MongoSettings
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name

NOON = datetime(2026, 3, 1, 12, 0, 0, 123_000, tzinfo=UTC)
ORIGIN = Origin("u-1", "admin", "request", "r-1", NOON, "r-1")


def claim(org: str) -> Claim:
    return new_claim(
        Claim(
            organization_id=org,
            claim_id=str(uuid4()),
            version=1,
            status=Status.SUBMITTED,
            patient_id='p "1" é',
            currency="CAD",
            lines=(Line("99213", 1, Decimal("136.80"), "CPT", "visit"), Line("99214", 3, Decimal("9999999.99"))),
            created_at=NOON,
            updated_at=NOON,
            created_by="u-1",
            service_date=NOON - timedelta(days=1),
        )
    )


class Process:
    """One replica: its cache, and the store behind it."""

    def __init__(self, database: mongo.Database, cache: ClaimsCache, org: str) -> None:
        self.cache = cache
        self.claims: TenantClaims = ClaimStore(database, audit_key=b"key", writing=cache.writing).of(Tenant(org))

    async def read(self, claim_id: str) -> Claim | None:
        return await self.cache.claim(self.claims.organization_id, claim_id, CLAIM, partial(self.claims.get, claim_id))

    async def list(self) -> list[Claim]:
        return await self.cache.listing(
            self.claims.organization_id, "all", CLAIMS, partial(self.claims.page, ClaimQuery(), limit=100)
        )

    async def write(self, before: Claim | None, after: Claim, action: Action = "updated") -> None:
        await self.claims.write([ClaimChange(before, after, action)], ORIGIN)


@pytest_asyncio.fixture
async def processes(
    stack: StackUrls, cache: ClaimsCache, other: ClaimsCache, org: str
) -> AsyncIterator[tuple[Process, Process]]:
    client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="test")
    database = client[random_name("claims")]
    await ClaimStore(database, audit_key=b"key").create_indexes()
    yield Process(database, cache, org), Process(database, other, org)
    await client.drop_database(database.name)
    await client.close()


def test_a_claim_comes_back_from_the_cache_as_it_was() -> None:
    decided = replace(
        pay(replace(claim("org"), status=Status.APPROVED, decided_at=NOON), Decimal("0.10"), NOON),
        provider_id="dr-1",
        status_reason="because",
    )
    assert CLAIM.decode(CLAIM.encode(decided)) == decided
    assert CLAIMS.decode(CLAIMS.encode([decided, claim("org")]))[0] == decided
    with pytest.raises(ValueError, match="claim_id"):
        CLAIM.decode(CLAIM.encode(decided).replace(b'"claim_id"', b'"claimId"'))


def test_a_claim_of_another_form_is_kept_under_keys_of_another_version() -> None:
    """Replicas of both forms run side by side for a while, and a field that is missing is taken for empty."""
    names = [field.name for kind in (Claim, Line) for field in fields(kind)]
    form = sha256(" ".join(names).encode()).hexdigest()[:8]
    assert (KEYS, form) == ("claims:v1", "ea9afb86"), "count the version up, and write both down here"


async def test_every_write_is_seen_at_once_by_every_process(processes: tuple[Process, Process], org: str) -> None:
    here, there = processes
    first = claim(org)
    assert await there.list() == []
    await here.write(None, first, "created")
    for each in processes:
        assert await each.list() == [first]
        assert await each.read(first.claim_id) == first
    second = move(first, Status.UNDER_REVIEW, NOON)
    await here.write(first, second, "status-changed")
    third = amend(second, NOON, payer_id="payer")
    await there.write(second, third)
    for each in processes:
        assert await each.read(first.claim_id) == third
        assert await each.list() == [third]


async def test_a_write_that_lost_against_another_leaves_the_winner_s_claim(
    processes: tuple[Process, Process], org: str
) -> None:
    first = claim(org)
    await processes[0].write(None, first, "created")

    async def patch(n: int) -> bool:
        by = processes[n % 2]
        await by.read(first.claim_id)
        try:
            await by.write(first, amend(first, NOON, payer_id=f"payer-{n}"))
        except VersionConflict:
            return False
        assert (await by.read(first.claim_id)) == await by.claims.get(first.claim_id)
        return True

    assert (await asyncio.gather(*(patch(n) for n in range(20)))).count(True) == 1
    truth = await processes[0].claims.get(first.claim_id)
    assert truth is not None
    assert truth.version == 2
    for each in processes:
        assert await each.read(first.claim_id) == truth
        assert await each.list() == [truth]
