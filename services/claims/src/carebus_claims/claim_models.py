"""What the routes of claims take and answer: camelCase, money as text with at most two decimals, times in RFC 3339."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SkipValidation
from pydantic.alias_generators import to_camel

from carebus_claims.claim import Line, Status
from carebus_common.contracts.event import EventId, PatientId, Timestamp
from carebus_common.http.numbers import WHOLE
from carebus_common.http.query import Limit, QueryModel

__all__ = [
    "AssignBody",
    "AuditQuery",
    "BulkCreateBody",
    "BulkUpdateBody",
    "ChangeItem",
    "ChangesQuery",
    "ClaimAuditView",
    "ClaimBody",
    "ClaimBulkResult",
    "ClaimBulkView",
    "ClaimFilter",
    "ClaimView",
    "DashboardView",
    "ExportQuery",
    "ListQuery",
    "PatchBody",
    "PaymentBody",
    "StatusBody",
    "UpdateItem",
]

MAX_BULK: Final = 1000


def _encodable(text: str) -> str:
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("no NUL and no lone surrogates")
    return text


Money = Annotated[
    str,
    Field(
        pattern=r"^(0|[1-9][0-9]{0,6})(\.[0-9]{1,2})?$",
        description="Decimal text with at most two decimals, up to 9999999.99.",
        examples=["136.80"],
    ),
]
# As `_encodable` has it, for the document.
_NO_NUL: Final[dict[str, Any]] = {"pattern": r"^[^\x00]*$"}
Id = Annotated[str, Field(min_length=1, max_length=128, json_schema_extra=_NO_NUL), AfterValidator(_encodable)]
Text = Annotated[str, Field(min_length=1, max_length=256, json_schema_extra=_NO_NUL), AfterValidator(_encodable)]
Reason = Annotated[str, Field(min_length=1, max_length=500, json_schema_extra=_NO_NUL), AfterValidator(_encodable)]
Version = Annotated[int, Field(ge=1, le=2**31 - 1), WHOLE]
Units = Annotated[int, Field(ge=1, le=99_999), WHOLE]
StatusText = Literal["submitted", "under_review", "pending", "approved", "denied", "paid"]
Decision = Literal["under_review", "pending", "approved", "denied"]


class _Body(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=False, validate_by_alias=True, frozen=True, extra="forbid"
    )


class LineBody(_Body):
    """One service; `amount` is the charge for all its units."""

    code: Id
    units: Units = 1
    amount: Money
    code_system: Id | None = None
    description: Text | None = None

    def line(self) -> Line:
        return Line(self.code, self.units, Decimal(self.amount), self.code_system, self.description)


Lines = Annotated[tuple[LineBody, ...], Field(min_length=1, max_length=200)]


class ClaimBody(_Body):
    """A new claim; it begins as `submitted`. Without a `claimId` it gets one."""

    claim_id: EventId | None = Field(default=None, description="A UUID of the caller's; a repetition answers 409.")
    patient_id: PatientId
    provider_id: Id | None = None
    payer_id: Id | None = None
    assigned_processor_id: Id | None = None
    encounter_id: Id | None = None
    external_id: Id | None = Field(default=None, description="The claim's number elsewhere; unique.")
    service_date: Timestamp | None = None
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$", description="ISO 4217.", examples=["CAD"])]
    lines: Lines


class ChangedFields(_Body):
    """The fields to change; null empties one that may be empty."""

    provider_id: Id | None = None
    payer_id: Id | None = None
    encounter_id: Id | None = None
    external_id: Id | None = None
    service_date: Timestamp | None = None
    lines: Lines | None = None


class PatchBody(ChangedFields):
    version: Version | None = Field(default=None, description="The version that was read, unless If-Match says it.")
    reason: Reason | None = None


class AssignBody(_Body):
    processor_id: Id | None = Field(description="Null takes the claim from everybody.")
    version: Version | None = None
    reason: Reason | None = None


class StatusBody(_Body):
    status: Decision
    reason: Reason
    version: Version | None = None


class PaymentBody(_Body):
    amount: Money
    version: Version | None = None
    reason: Reason | None = None


class Payment(_Body):
    amount: Money


class UpdateItem(_Body):
    """One claim's change, of one kind: `set`, `status` with its `reason`, `assignedProcessorId`, or `payment`."""

    claim_id: EventId
    version: Version | None = None
    set: ChangedFields | None = None
    status: Decision | None = None
    assigned_processor_id: Id | None = None
    payment: Payment | None = None
    reason: Reason | None = None


# Each item is checked by itself, so that a bad one does not sink the rest; the document has its shape all the same.
NewClaims = Annotated[list[SkipValidation[ClaimBody]], Field(min_length=1, max_length=MAX_BULK)]
Updates = Annotated[list[SkipValidation[UpdateItem]], Field(min_length=1, max_length=MAX_BULK)]


class BulkCreateBody(_Body):
    claims: NewClaims


class BulkUpdateBody(_Body):
    updates: Updates


_UUID: Final = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_STATUS: Final = "|".join(Status)


class ClaimFilter(QueryModel):
    """Which claims; a range includes its lower bound, `maxTotal` itself too."""

    claim_id: str | None = Field(
        default=None,
        max_length=200 * 37,
        description="Up to 200 ids, joined by commas; unknown ones are left out.",
        json_schema_extra={"pattern": f"^{_UUID}(,{_UUID}){{0,199}}$"},
    )
    status: str | None = Field(
        default=None,
        max_length=100,
        description="One or more, joined by commas.",
        json_schema_extra={"pattern": f"^({_STATUS})(,({_STATUS}))*$"},
    )
    patient_id: Id | None = None
    provider_id: Id | None = None
    assigned_processor_id: Id | None = None
    since: Timestamp | None = Field(default=None, alias="from", description="Created then or later.")
    until: Timestamp | None = Field(default=None, alias="to", description="Created before.")
    min_total: Money | None = None
    max_total: Money | None = None
    sort: Literal["createdAt", "-createdAt", "total", "-total", "updatedAt", "-updatedAt"] = "-createdAt"


class ListQuery(ClaimFilter):
    limit: Limit = 50
    cursor: str | None = Field(default=None, description="`page.next` of the page before, with the same filters.")


class ExportQuery(ClaimFilter):
    format: Literal["csv", "ndjson"] = "ndjson"


class AuditQuery(QueryModel):
    limit: Limit = 50
    cursor: str | None = Field(default=None, description="`page.next` of the page before.")


class ChangesQuery(QueryModel):
    """Nothing is asked for: the stream begins with the next change, or after `Last-Event-ID`."""


class _View(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, frozen=True)


class ClaimLineView(_View):
    code: str
    code_system: str | None
    description: str | None
    units: int
    amount: str


class ClaimView(_View):
    """A claim as `claim.shown` gives it."""

    claim_id: UUID
    version: int
    status: StatusText
    status_reason: str | None
    patient_id: str
    provider_id: str | None
    payer_id: str | None
    assigned_processor_id: str | None
    encounter_id: str | None
    external_id: str | None
    service_date: datetime | None
    currency: str
    lines: list[ClaimLineView]
    total: str
    paid: str
    created_at: datetime
    created_by: str
    updated_at: datetime
    decided_at: datetime | None
    paid_at: datetime | None


class ClaimItemProblem(_View):
    path: str
    rule: str


class ClaimItemError(_View):
    code: str
    message: str
    details: list[ClaimItemProblem]


class ClaimBulkResult(_View):
    """What became of one item: 201 or 200 with the claim, else an error with the status it would have had alone."""

    index: int
    claim_id: str | None
    status: int
    claim: ClaimView | None = None
    error: ClaimItemError | None = None


class ClaimBulkView(_View):
    results: list[ClaimBulkResult]
    succeeded: int
    failed: int


class ClaimActorView(_View):
    id: str
    role: str


class ClaimCauseView(_View):
    kind: Literal["request", "event"]
    id: str


class ClaimFieldChangeView(_View):
    path: str
    before: Any
    after: Any


class ClaimAuditView(_View):
    """One change of a claim: who, when, why, and what it was before and after, field by field."""

    seq: int
    at: datetime
    action: Literal["created", "updated", "assigned", "status-changed", "paid"]
    version: int
    actor: ClaimActorView
    cause: ClaimCauseView
    reason: str | None
    request_id: str | None
    changes: list[ClaimFieldChangeView]


class ChangeItem(ClaimAuditView):
    """One change in the stream of all."""

    claim_id: UUID
    patient_id: str
    claim: ClaimView


class StatusFigures(_View):
    status: StatusText
    count: int
    total: str
    paid: str


class AgeFigures(_View):
    """Open claims by whole days since their creation; `to` null: and older."""

    from_days: int
    to_days: int | None
    count: int


class WorkloadFigures(_View):
    processor_id: str
    open: int


class DashboardView(_View):
    """`asOf` is the number of the last change that is counted. A processor sees its own workload only."""

    as_of: int
    statuses: list[StatusFigures]
    ageing: list[AgeFigures]
    workload: list[WorkloadFigures]


STATUSES: Final = frozenset(Status)
