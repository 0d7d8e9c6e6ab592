"""The schema: claims, what was done to them, and the patients they are for.

Objects are made of what the claims service answers. A patient is read only where something of it is asked for, and
what the caller may not see looks as if there were nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any

import strawberry
from strawberry.types import Info

from carebus_gateway.graphql.connections import Connection, connection_of
from carebus_gateway.graphql.limits import DEFAULT_FIRST, MAX_FIRST
from carebus_gateway.graphql.reading import Reader, Record
from carebus_gateway.graphql.scalars import DateTime, Json, Money

__all__ = ["Query"]

Context = Info[Reader, None]

First = Annotated[int, strawberry.argument(description=f"How many at most: 1 to {MAX_FIRST}.")]
After = Annotated[str | None, strawberry.argument(description="Behind this cursor of an edge or of pageInfo.")]


@strawberry.enum
class ClaimStatus(Enum):
    SUBMITTED = "submitted"
    UNDER_REVIEW = "under_review"
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    PAID = "paid"


@strawberry.enum
class ClaimSort(Enum):
    CREATED_AT_ASC = "createdAt"
    CREATED_AT_DESC = "-createdAt"
    TOTAL_ASC = "total"
    TOTAL_DESC = "-total"
    UPDATED_AT_ASC = "updatedAt"
    UPDATED_AT_DESC = "-updatedAt"


@strawberry.enum
class HistoryOrder(Enum):
    OLDEST_FIRST = "asc"
    NEWEST_FIRST = "desc"


@strawberry.input(description="All of what is given must hold.")
class ClaimFilter:
    status: list[ClaimStatus] | None = strawberry.field(default=None, description="One of these.")
    patient_id: str | None = None
    provider_id: str | None = None
    assigned_processor_id: str | None = None
    created_from: DateTime | None = strawberry.field(default=None, description="Inclusive.")
    created_to: DateTime | None = strawberry.field(default=None, description="Exclusive.")
    min_total: Money | None = None
    max_total: Money | None = None


@strawberry.type
class ClaimLine:
    code: str
    code_system: str | None
    description: str | None
    units: int
    amount: Money = strawberry.field(description="The charge for all its units.")


@strawberry.type
class Actor:
    id: str
    role: str | None


@strawberry.type(description="What made a change: a request or a medical event.")
class Cause:
    kind: str
    id: str | None


@strawberry.type
class FieldChange:
    path: str
    before: Json | None
    after: Json | None


@strawberry.type(description="One change of a claim, as it was recorded when it was made.")
class AuditEntry:
    seq: int = strawberry.field(description="Its number in the organization's chain.")
    at: DateTime
    actor: Actor
    action: str
    version: int = strawberry.field(description="The claim's version after it.")
    reason: str | None
    request_id: str | None
    cause: Cause | None
    changes: list[FieldChange] = strawberry.field(description="By field.")


@strawberry.type
class Claim:
    claim_id: strawberry.ID
    version: int
    status: ClaimStatus
    status_reason: str | None
    patient_id: str
    provider_id: str | None
    payer_id: str | None
    assigned_processor_id: str | None
    currency: str = strawberry.field(description="ISO 4217.")
    total: Money
    paid: Money
    lines: list[ClaimLine]
    service_date: DateTime | None
    encounter_id: str | None
    external_id: str | None
    created_at: DateTime
    created_by: str | None
    updated_at: DateTime
    decided_at: DateTime | None
    paid_at: DateTime | None

    @strawberry.field(description="Its changes, in the order in which the claims service lists them.")
    async def audit(
        self, info: Context, first: First = DEFAULT_FIRST, after: After = None
    ) -> Connection[AuditEntry] | None:
        async def read(cursor: str | None, limit: int) -> Record | None:
            return await info.context.page(["claims", self.claim_id, "audit"], {"limit": limit, "cursor": cursor})

        return await connection_of(read, lambda entry: str(entry["seq"]), audit_entry_of, first=first, after=after)

    @strawberry.field
    def patient(self) -> Patient:
        return Patient(patient_id=strawberry.ID(self.patient_id))


@strawberry.type
class Stay:
    stay_id: str
    status: str
    opened_at: DateTime
    closed_at: DateTime | None
    location: str | None


@strawberry.type(description="How many events of one type.")
class EventCount:
    type: str
    count: int


@strawberry.type(description="A patient at a glance.")
class PatientSummary:
    stay: Stay | None = strawberry.field(description="The current stay, or the last one if it is closed.")
    flags: Json = strawberry.field(description="The newest 20, newest first.")
    flag_total: int
    counts: list[EventCount]
    event_total: int
    late_total: int
    oldest_ts: DateTime
    newest_ts: DateTime


@strawberry.type(description="A medical event, and what was made of it.")
class HistoryEvent:
    event_id: strawberry.ID
    type: str
    ts: DateTime
    received_at: DateTime
    processed_at: DateTime
    late: bool
    message: str
    flags: Json
    data: Json
    stay: Stay | None


@strawberry.type(description="A patient by id: whether there is one shows in what is asked of it.")
class Patient:
    patient_id: strawberry.ID

    @strawberry.field(description="null if there is no such patient for the caller.")
    async def summary(self, info: Context) -> PatientSummary | None:
        record = await info.context.patient(self.patient_id)
        return None if record is None else summary_of(record)

    @strawberry.field(description="Its events; null if there is no such patient for the caller.")
    async def history(
        self,
        info: Context,
        first: First = DEFAULT_FIRST,
        after: After = None,
        type: str | None = None,  # noqa: A002 - the API's name
        since: Annotated[DateTime | None, strawberry.argument(name="from", description="Inclusive.")] = None,
        until: Annotated[DateTime | None, strawberry.argument(name="to", description="Exclusive.")] = None,
        order: HistoryOrder = HistoryOrder.NEWEST_FIRST,
    ) -> Connection[HistoryEvent] | None:
        filters = {"type": type, "from": since, "to": until, "order": order.value}

        async def read(cursor: str | None, limit: int) -> Record | None:
            path = ["patients", self.patient_id, "history"]
            return await info.context.page(path, {**filters, "limit": limit, "cursor": cursor})

        return await connection_of(read, lambda event: str(event["eventId"]), event_of, first=first, after=after)

    @strawberry.field(description="Those of its claims that the caller may see.")
    async def claims(
        self,
        info: Context,
        first: First = DEFAULT_FIRST,
        after: After = None,
        status: list[ClaimStatus] | None = None,
        sort: ClaimSort = ClaimSort.CREATED_AT_DESC,
    ) -> Connection[Claim] | None:
        filters = ClaimFilter(status=status, patient_id=self.patient_id)
        return await claims_of(info.context, filters, sort, first=first, after=after)


@strawberry.type
class Query:
    @strawberry.field(description="null if there is no such claim for the caller.")
    async def claim(
        self, info: Context, claim_id: Annotated[strawberry.ID, strawberry.argument(name="id")]
    ) -> Claim | None:
        record = await info.context.claim(claim_id)
        return None if record is None else claim_of(record)

    @strawberry.field(description="Those that the caller may see.")
    async def claims(
        self,
        info: Context,
        first: First = DEFAULT_FIRST,
        after: After = None,
        filter: ClaimFilter | None = None,  # noqa: A002 - the API's name
        sort: ClaimSort = ClaimSort.CREATED_AT_DESC,
    ) -> Connection[Claim] | None:
        return await claims_of(info.context, filter or ClaimFilter(), sort, first=first, after=after)

    @strawberry.field
    def patient(self, patient_id: Annotated[strawberry.ID, strawberry.argument(name="id")]) -> Patient:
        return Patient(patient_id=patient_id)


async def claims_of(
    reader: Reader, filters: ClaimFilter, sort: ClaimSort, *, first: int, after: str | None
) -> Connection[Claim] | None:
    """A page of `GET /claims`. Raises CarebusError."""
    parameters = {
        "status": ",".join(status.value for status in filters.status) if filters.status else None,
        "patientId": filters.patient_id,
        "providerId": filters.provider_id,
        "assignedProcessorId": filters.assigned_processor_id,
        "from": filters.created_from,
        "to": filters.created_to,
        "minTotal": filters.min_total,
        "maxTotal": filters.max_total,
        "sort": sort.value,
    }

    async def read(cursor: str | None, limit: int) -> Record | None:
        return await reader.page(["claims"], {**parameters, "limit": limit, "cursor": cursor})

    return await connection_of(read, lambda claim: str(claim["claimId"]), claim_of, first=first, after=after)


def claim_of(record: Record) -> Claim:
    return Claim(
        claim_id=record["claimId"],
        version=record["version"],
        status=ClaimStatus(record["status"]),
        status_reason=record.get("statusReason"),
        patient_id=record["patientId"],
        provider_id=record.get("providerId"),
        payer_id=record.get("payerId"),
        assigned_processor_id=record.get("assignedProcessorId"),
        currency=record["currency"],
        total=_money(record["total"]),
        paid=_money(record["paid"]),
        lines=[_line_of(line) for line in record["lines"]],
        service_date=record.get("serviceDate"),
        encounter_id=record.get("encounterId"),
        external_id=record.get("externalId"),
        created_at=record["createdAt"],
        created_by=record.get("createdBy"),
        updated_at=record["updatedAt"],
        decided_at=record.get("decidedAt"),
        paid_at=record.get("paidAt"),
    )


def _line_of(line: Record) -> ClaimLine:
    return ClaimLine(
        code=line["code"],
        code_system=line.get("codeSystem"),
        description=line.get("description"),
        units=line["units"],
        amount=_money(line["amount"]),
    )


def _money(value: Any) -> Money:
    """Raises TypeError for what came as a number: cents may be missing already."""
    if not isinstance(value, str):
        raise TypeError("an amount that is no text")
    return Money(value)


def audit_entry_of(record: Record) -> AuditEntry:
    cause = record.get("cause")
    return AuditEntry(
        seq=record["seq"],
        at=record["at"],
        actor=Actor(id=record["actor"]["id"], role=record["actor"].get("role")),
        action=record["action"],
        version=record["version"],
        reason=record.get("reason"),
        request_id=record.get("requestId"),
        cause=Cause(kind=cause["kind"], id=cause.get("id")) if isinstance(cause, Mapping) else None,
        changes=[
            FieldChange(path=change["path"], before=change.get("before"), after=change.get("after"))
            for change in record.get("changes", ())
        ],
    )


def summary_of(record: Record) -> PatientSummary:
    return PatientSummary(
        stay=_stay_of(record["stay"]),
        flags=Json(record["flags"]),
        flag_total=record["flagTotal"],
        counts=[EventCount(type=name, count=count) for name, count in record["counts"].items()],
        event_total=record["eventTotal"],
        late_total=record["lateTotal"],
        oldest_ts=record["oldestTs"],
        newest_ts=record["newestTs"],
    )


def event_of(record: Record) -> HistoryEvent:
    return HistoryEvent(
        event_id=record["eventId"],
        type=record["type"],
        ts=record["ts"],
        received_at=record["receivedAt"],
        processed_at=record["processedAt"],
        late=record["late"],
        message=record["message"],
        flags=Json(record["flags"]),
        data=Json(record["data"]),
        stay=_stay_of(record["stay"]),
    )


def _stay_of(record: Record | None) -> Stay | None:
    if record is None:
        return None
    return Stay(
        stay_id=record["stayId"],
        status=record["status"],
        opened_at=record["openedAt"],
        closed_at=record.get("closedAt"),
        location=record.get("location"),
    )
