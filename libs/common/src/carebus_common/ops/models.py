"""What the ops API takes and answers: camelCase, times in RFC 3339 UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool
from pydantic.alias_generators import to_camel

from carebus_common.contracts.event import EventType, Timestamp
from carebus_common.http.numbers import WHOLE
from carebus_common.http.query import Limit, QueryModel

__all__ = [
    "ApproveBody",
    "AuditEntry",
    "AuditQuery",
    "ChooseBody",
    "ChosenView",
    "ConsumerView",
    "DeadLetterItem",
    "DeadLetterView",
    "EditBody",
    "FilterBody",
    "LetterId",
    "ListQuery",
    "PendingView",
    "PurgeBody",
    "PurgeView",
    "Reason",
    "ReasonBody",
    "RevealedView",
    "RunQuery",
    "RunView",
    "SummaryQuery",
    "SummaryRow",
    "TailQuery",
    "TailRecordView",
]

# A topic's name, partition, offset, and after a redrive which one it was.
LETTER_ID: Final = r"^[A-Za-z0-9._-]{1,249}-[0-9]{1,10}-[0-9]{1,19}(~[0-9]{1,6})?$"


def _says_something(value: str) -> str:
    if not value.strip():
        raise ValueError("must say why")
    return value


LetterId = Annotated[str, Field(pattern=LETTER_ID)]
Reason = Annotated[
    str, Field(min_length=1, max_length=500, json_schema_extra={"pattern": r"\S"}), AfterValidator(_says_something)
]
Fingerprint = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
OrganizationId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Patient = Annotated[str, Field(min_length=1, max_length=128)]
Cursor = Annotated[str, Field(max_length=1024)]
Run = Annotated[
    UUID | None, Field(description="One for all requests of a command; `GET …/runs/{run}` tells what became of them.")
]


# --- what is asked --------------------------------------------------------------------------------------------------


class SummaryQuery(QueryModel):
    """Of one organization, first dead-lettered `since <= createdAt < until`."""

    organization_id: OrganizationId | None = None
    since: Timestamp | None = Field(default=None, description="Inclusive; RFC 3339 with offset.")
    until: Timestamp | None = Field(default=None, description="Exclusive; RFC 3339 with offset.")


class ListQuery(SummaryQuery):
    """Which dead letters, how many, and from where on."""

    status: Literal["open", "redriven", "discarded", "all"] = "open"
    fingerprint: Fingerprint | None = None
    type: EventType | None = None
    patient: Patient | None = Field(
        default=None,
        description="The patient's hash. An operator-phi may give the patientId itself, with the organizationId.",
    )
    limit: Limit = 50
    cursor: Cursor | None = Field(default=None, description="`page.next` of the page before, with the same filters.")


class AuditQuery(QueryModel):
    limit: Limit = 50
    cursor: Cursor | None = Field(default=None, description="`page.next` of the page before.")


class RunQuery(QueryModel):
    outcomes: Literal["true", "false"] = Field(
        default="true", description="Counting them costs more, the more there are."
    )


class TailQuery(QueryModel):
    limit: Limit = 20
    cursor: Cursor | None = Field(default=None, description="`page.next` of the answer before; without it, the newest.")


class _Body(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=False, validate_by_alias=True, frozen=True, extra="forbid"
    )


class ReasonBody(_Body):
    """Why; it goes into the audit. Name no patient."""

    reason: Reason


class ApproveBody(_Body):
    reason: Reason | None = None


class FilterBody(_Body):
    """Open dead letters by what they have in common; at least one field."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": [name], "properties": {name: {"type": "string"}}}
                for name in ("fingerprint", "type", "organizationId", "patient", "since", "until")
            ]
        }
    )

    fingerprint: Fingerprint | None = None
    type: EventType | None = None
    organization_id: OrganizationId | None = None
    patient: Patient | None = None
    since: Timestamp | None = None
    until: Timestamp | None = None


class ChooseBody(_Body):
    """Which dead letters to redrive or discard: `ids`, or a `filter` page by page. Nothing happens while `dryRun`."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": ["ids"],
                    "properties": {"ids": {"type": "array"}, "filter": {"type": "null"}, "cursor": {"type": "null"}},
                },
                {"required": ["filter"], "properties": {"filter": {"type": "object"}, "ids": {"type": "null"}}},
            ]
        }
    )

    ids: Annotated[list[LetterId], Field(min_length=1, max_length=1000)] | None = None
    filter: FilterBody | None = None
    reason: Reason
    dry_run: StrictBool = True
    cursor: Cursor | None = Field(default=None, description="`next` of the answer before, with the same filter.")
    limit: Annotated[int, Field(ge=1, le=20_000), WHOLE] = 1000
    run: Run = None


class EditBody(_Body):
    """The whole event as it should have been; its ids stay as they are."""

    value: dict[str, Any]
    reason: Reason
    run: Run = None


class PurgeBody(_Body):
    """Delete what was dead-lettered before `before` and is settled."""

    before: Timestamp
    reason: Reason


# --- what is answered -----------------------------------------------------------------------------------------------


class _View(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, frozen=True)


class SourceView(_View):
    """Where the record lies in the log."""

    topic: str
    partition: int
    offset: int


class FailureView(_View):
    """Why it could not be applied. The fingerprint is the same for failures of one cause."""

    error_class: str = Field(alias="class")
    message: str
    fingerprint: str
    where: str
    attempts: int
    first_failed_at: datetime
    last_failed_at: datetime


class CauseView(_View):
    error_class: str = Field(alias="class")
    where: str


class OutcomeView(_View):
    """What became of the redrive; of a further failure, `deadLetter` is the next one."""

    status: str
    at: datetime
    dead_letter: str | None = None


class DeadLetterItem(_View):
    """A dead letter without its payload. `patient` is a keyed hash."""

    id: str
    status: Literal["open", "redriven", "discarded"]
    reason: str
    blocking: bool = Field(description="Its patient waits for it.")
    organization_id: str | None
    event_id: str | None
    patient: str | None
    type: str | None
    source: SourceView
    failure: FailureView
    redrives: int
    created_at: datetime
    outcome: OutcomeView | None
    previous: str | None


class ChangedPath(_View):
    path: str
    op: str


class EditView(_View):
    by: str
    at: datetime
    reason: str
    diff: list[ChangedPath] = Field(description="Where the payload was changed, without values.")


class DecisionView(_View):
    by: str
    at: datetime
    reason: str


class HeaderView(_View):
    """A header of the record; the value only of those that Carebus sets itself."""

    name: str
    value: str | None


class DeadLetterView(DeadLetterItem):
    """A dead letter with its payload masked: structure and keys stay, values do not."""

    attempts: int
    causes: list[CauseView]
    edits: list[EditView]
    redrive: DecisionView | None
    discard: DecisionView | None
    headers: list[HeaderView]
    payload: Any = None
    payload_bytes: int


class RevealedView(_View):
    """The payload as it is, which the audit knows about."""

    id: str
    patient_id: str | None
    key: str | None
    key_encoding: Literal["utf-8", "base64"] | None
    payload: Any = None
    payload_encoding: Literal["json", "base64"] | None
    edited: Any = Field(default=None, description="What a redrive uses instead, if somebody edited it.")


class SummaryRow(_View):
    """Dead letters of one cause. `patients` are those with an open one; `example` is the newest."""

    fingerprint: str
    error_class: str
    message: str
    where: str
    reason: str
    open: int
    redriven: int
    discarded: int
    patients: int
    first: datetime
    last: datetime
    example: str


class SkippedView(_View):
    id: str
    why: Literal["not-open", "not-redrivable", "redrive-cap", "not-found"]


class ChosenView(_View):
    """What was asked for (`dryRun`: would be). Only the owner of the partition carries it out, soon after.

    A dry run counts what matches the filter, from 10,000 on as `matchingAtLeast`.
    """

    dry_run: bool
    matching: int | None = None
    matching_at_least: int | None = None
    requested: int
    patients: int
    skipped: list[SkippedView] = Field(description="The first 1,000 of those left out.")
    more_skipped: int = Field(description="How many are left out beside them.")
    next: str | None = Field(description="Ask again with it as `cursor` for the following ones.")


class PendingView(_View):
    """Requests that no owner has carried out yet, and how many dead letters they name."""

    requests: int
    dead_letters: int


class AgainView(_View):
    """A dead letter that failed again, and its next one."""

    id: str
    dead_letter: str


class RunView(_View):
    """What is left of a run and what became of the rest: how many by outcome, and the first 100 that failed again.

    Once nothing is pending, what has no outcome was not open any more, or is still.
    """

    pending: PendingView
    outcomes: dict[str, int] = Field(description="Empty if they were not asked for.")
    again: list[AgainView]


class PauseView(_View):
    """Why the consumer stopped itself."""

    reason: str
    detail: str | None = None
    at: datetime | None = None


class PartitionView(_View):
    partition: int
    committed: int | None
    end: int
    lag: int


class ReplicaView(_View):
    """The process that answered."""

    partitions: list[int]
    in_flight: int
    store_away: bool
    broker_away: bool


class ConsumerView(_View):
    """The consumer group as a whole; `lag` is null while the broker cannot be asked."""

    group: str
    topic: str
    paused: PauseView | None
    partitions: list[PartitionView]
    lag: int | None
    parked_patients: int
    parked_events: int
    open_dead_letters: int
    pending_requests: int
    oldest_waiting_since: datetime | None
    this_replica: ReplicaView


class PurgeView(_View):
    """`approved`: the deletion has begun and is not finished; approve again to go on."""

    id: str
    before: datetime
    reason: str
    requested_by: str
    requested_at: datetime
    approved_by: str | None
    approved_at: datetime | None
    status: Literal["requested", "approved", "done"]
    deleted: int


class TailRecordView(_View):
    """A record with its payload masked; null if it is too large to be looked into."""

    partition: int
    offset: int
    timestamp: int = Field(description="Milliseconds since 1970.")
    organization_id: str | None
    type: str | None
    event_id: str | None
    patient: str | None
    dlq: dict[str, str | None] | None = Field(description="Of a dead-letter topic, its `dlq.` headers.")
    payload: Any = None
    payload_bytes: int


class AuditEntry(_View):
    id: str
    at: datetime
    actor: str
    actor_organization_id: str
    roles: list[str]
    action: str
    target: list[str]
    filter: dict[str, Any] | None
    reason: str | None
    request_id: str
    count: int
