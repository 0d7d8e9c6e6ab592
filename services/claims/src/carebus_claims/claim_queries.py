"""What may be asked of an organization's claims, as filters that an index serves. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

from bson import Decimal128
from pymongo import ASCENDING, DESCENDING, IndexModel

from carebus_claims.claim import Claim, Status
from carebus_claims.claim_documents import row_id

__all__ = ["INDEXES", "SORTS", "ClaimQuery", "Place", "Scope", "place_of", "queries_for"]

Document = dict[str, Any]
SortField = Literal["createdAt", "total", "updatedAt"]
SORTS: Final[tuple[SortField, ...]] = ("createdAt", "total", "updatedAt")
_CENT: Final = Decimal("0.01")

# Tenant first, so that no query can be served without one; `_id` last, so that a page ends between two claims of the
# same moment or sum.
INDEXES: Final = (
    *(
        IndexModel([("organizationId", 1), *((name, 1) for name in names), ("_id", 1)], name="_".join(names))
        for names in (
            ("createdAt",),
            ("total",),
            ("updatedAt",),
            ("status", "createdAt"),
            ("status", "total"),
            ("status", "updatedAt"),
            ("patientId", "createdAt"),
            ("assignedProcessorId", "createdAt"),
            ("providerId", "createdAt"),
        )
    ),
    IndexModel(
        [("organizationId", 1), ("externalId", 1)],
        name="externalId",
        unique=True,
        partialFilterExpression={"externalId": {"$type": "string"}},
    ),
)


@dataclass(frozen=True, slots=True)
class Scope:
    """What of the organization the caller sees: all, or where `field` (a field of the store) is `value`."""

    field: Literal["assignedProcessorId", "providerId", "patientId"] | None = None
    value: str | None = None

    def admits(self, claim: Claim) -> bool:
        if self.field is None:
            return True
        held = {
            "assignedProcessorId": claim.assigned_processor_id,
            "providerId": claim.provider_id,
            "patientId": claim.patient_id,
        }[self.field]
        return held is not None and held == self.value


@dataclass(frozen=True, slots=True)
class ClaimQuery:
    """Which claims, in which order: `created_from <= createdAt < created_to`, `min_total <= total <= max_total`."""

    scope: Scope = Scope()
    statuses: tuple[Status, ...] = ()
    claim_ids: tuple[str, ...] = ()
    patient_id: str | None = None
    provider_id: str | None = None
    assigned_processor_id: str | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None
    min_total: Decimal | None = None
    max_total: Decimal | None = None
    sort: SortField = "createdAt"
    descending: bool = True

    @property
    def order(self) -> list[tuple[str, int]]:
        direction = DESCENDING if self.descending else ASCENDING
        return [(self.sort, direction), ("_id", direction)]


@dataclass(frozen=True, slots=True)
class Place:
    """The last claim of a page: the next page starts after it, whatever is inserted meanwhile."""

    value: datetime | Decimal
    claim_id: str


def place_of(claim: Claim, query: ClaimQuery) -> Place:
    if query.sort == "total":
        return Place(claim.total, claim.claim_id)
    return Place(claim.created_at if query.sort == "createdAt" else claim.updated_at, claim.claim_id)


def queries_for(organization_id: str, query: ClaimQuery, after: Place | None = None) -> Iterator[Document]:
    """The filters that together find what is asked for, in reading order; none if nothing can match.

    No `$or` and no `$lte`: the embedded store reads everything for the one, and misses rows at the bound of the other.
    """
    where = _conditions(organization_id, query)
    if where is None:
        return
    if after is None:
        yield where
        return
    beyond = "$lt" if query.descending else "$gt"
    value = Decimal128(after.value) if isinstance(after.value, Decimal) else after.value
    bounds = where.get(query.sort, {})
    ids = where.get("_id", {})
    if _within(after.value, bounds):
        yield {**where, query.sort: value, "_id": {**ids, beyond: row_id(organization_id, after.claim_id)}}
    yield {**where, query.sort: {**bounds, beyond: value}}


def _conditions(organization_id: str, query: ClaimQuery) -> Document | None:
    where: Document = {"organizationId": organization_id}
    if query.scope.field is not None:
        if query.scope.value is None:
            return None
        where[query.scope.field] = query.scope.value
    for name, wanted in (
        ("patientId", query.patient_id),
        ("providerId", query.provider_id),
        ("assignedProcessorId", query.assigned_processor_id),
    ):
        if wanted is not None and where.setdefault(name, wanted) != wanted:
            return None
    if query.statuses:
        statuses = sorted({str(status) for status in query.statuses})
        where["status"] = statuses[0] if len(statuses) == 1 else {"$in": statuses}
    if query.claim_ids:
        where["_id"] = {"$in": sorted({row_id(organization_id, claim_id) for claim_id in query.claim_ids})}
    _bound(where, "createdAt", query.created_from, query.created_to)
    most = None if query.max_total is None else Decimal128(query.max_total + _CENT)
    _bound(where, "total", None if query.min_total is None else Decimal128(query.min_total), most)
    return where


def _bound(where: Document, name: str, least: Any, below: Any) -> None:
    bounds = {"$gte": least, "$lt": below}
    if found := {operator: bound for operator, bound in bounds.items() if bound is not None}:
        where[name] = found


def _within(value: datetime | Decimal, bounds: Document) -> bool:
    checks = {
        "$gte": lambda bound: value >= bound,
        "$gt": lambda bound: value > bound,
        "$lt": lambda bound: value < bound,
    }
    plain = {
        operator: bound.to_decimal() if isinstance(bound, Decimal128) else bound for operator, bound in bounds.items()
    }
    return all(checks[operator](bound) for operator, bound in plain.items())
