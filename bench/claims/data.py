"""The claims of the benchmark: what is in them follows from their number, so that every answer can be checked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from carebus_claims.chain import Link, head_mac
from carebus_claims.claim import Claim, Line, Status, total_of
from carebus_claims.claim_documents import ClaimChange, Origin, audit_row, claim_row
from carebus_claims.figures_delta import nested, of_claim
from carebus_common import mongo

Document = dict[str, Any]
BATCH = 2000
ORIGIN = datetime(2026, 1, 1, tzinfo=UTC)
# Of a hundred claims; the newest are those still worked on.
STATUSES = [Status.PAID] * 70 + [Status.DENIED] * 8 + [Status.APPROVED] * 7
STATUSES += [Status.PENDING] * 6 + [Status.UNDER_REVIEW] * 5 + [Status.SUBMITTED] * 4
LOADER = "loader"
PROCESSORS, PROVIDERS, PATIENTS = 20, 100, 2000


class Population:
    """`claims` claims in `organizations`, over the year before `ORIGIN`, evenly."""

    def __init__(self, claims: int, organizations: int) -> None:
        self.organizations = [f"bench-{n:02d}" for n in range(organizations)]
        self.each = claims // organizations
        self.step = timedelta(days=365) / self.each

    def claim_id(self, organization: int, n: int) -> str:
        return str(UUID(int=(organization << 100) | (0x4 << 76) | (0x8 << 60) | n))

    def claim(self, organization: int, n: int) -> Claim:
        created = _milliseconds(ORIGIN - (self.each - n) * self.step)
        status = STATUSES[n * 37 % 100]
        lines = tuple(Line(str(99000 + (n + k) % 700), 1 + k, _money(n, k), "CPT") for k in range(1 + n % 3))
        total = total_of(lines)
        decided = created + timedelta(days=9) if status in (Status.PAID, Status.DENIED, Status.APPROVED) else None
        return Claim(
            organization_id=self.organizations[organization],
            claim_id=self.claim_id(organization, n),
            version=1,
            status=status,
            patient_id=f"patient-{n * 7 % PATIENTS}",
            provider_id=f"provider-{n * 11 % PROVIDERS}",
            payer_id="payer-1",
            assigned_processor_id=f"processor-{n * 13 % PROCESSORS}",
            external_id=f"B{n:08d}",
            currency="CAD",
            lines=lines,
            total=total,
            paid=total if status is Status.PAID else Decimal("0.00"),
            created_at=created,
            updated_at=decided or created,
            decided_at=decided,
            paid_at=decided if status is Status.PAID else None,
            created_by=LOADER,
        )

    def of(self, organization: int) -> Iterator[Claim]:
        return (self.claim(organization, n) for n in range(self.each))


def _money(n: int, k: int) -> Decimal:
    return Decimal(500 + (n * 7919 + k * 104729) % 90000).scaleb(-2)


def _milliseconds(at: datetime) -> datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


async def load(database: mongo.Database, population: Population, key: bytes, *, audit: bool) -> None:
    """Straight into the collections; with `audit` each claim's creation too, else a head without entries before it."""
    waiting: set[asyncio.Task[Any]] = set()

    async def put(collection: str, rows: list[Document]) -> None:
        waiting.add(asyncio.create_task(database[collection].insert_many(rows, ordered=False)))
        if len(waiting) >= 4:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            waiting.difference_update(done)
            for task in done:
                task.result()

    for number, organization in enumerate(population.organizations):
        figures: dict[tuple[str, ...], Decimal] = {}
        link = Link()
        rows: list[Document] = []
        entries: list[Document] = []
        for claim in population.of(number):
            row = claim_row(claim)
            rows.append(row)
            for path, amount in of_claim(row).items():
                figures[path] = figures.get(path, Decimal(0)) + amount
            if audit:
                origin = Origin("bench", "admin", "request", "bench", claim.created_at)
                entry = audit_row(ClaimChange(None, claim, "created"), origin, link, key)
                link = Link(entry["seq"], entry["hash"])
                entries.append({**entry, "publishedAt": claim.created_at})
            if len(rows) == BATCH:
                await put("claims", rows)
                rows = []
            if len(entries) == BATCH:
                await put("claims_audit", entries)
                entries = []
        if rows:
            await put("claims", rows)
        if entries:
            await put("claims_audit", entries)
        mac = head_mac(organization, link.seq, link.hash, key)
        await database["claims_heads"].insert_one(
            {"_id": organization, "seq": link.seq, "hash": link.hash, "mac": mac, "figures": nested(figures)}
        )
    await asyncio.gather(*waiting)
    await database["heads_as_loaded"].insert_many(await database["claims_heads"].find().to_list())


async def as_loaded(database: mongo.Database) -> None:
    """Without what an earlier run did."""
    for head in await database["heads_as_loaded"].find().to_list():
        await database["claims_heads"].replace_one({"_id": head["_id"]}, head)
        await database["claims"].delete_many({"organizationId": head["_id"], "createdAt": {"$gte": ORIGIN}})
        await database["claims_audit"].delete_many({"organizationId": head["_id"], "seq": {"$gt": head["seq"]}})
    await database["claims_idempotency"].delete_many({})
