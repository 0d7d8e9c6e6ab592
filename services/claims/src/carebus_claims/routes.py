"""What claims serves: a patient's history, a patient at a glance, one event."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Security
from pydantic import Field

from carebus_claims.permissions import Sees, nothing_here, roles_of, sight
from carebus_claims.repository import HistoryFilter, HistoryRepository, Place
from carebus_claims.views import EventStatus, EventView, PatientView, event_status, event_view, patient_view
from carebus_common.auth import Caller, current_caller
from carebus_common.contracts.event import EventId, EventType, Timestamp, canonical_type
from carebus_common.contracts.event import PatientId as PatientIdRule
from carebus_common.errors import InvalidRequest, NotFound, Unavailable
from carebus_common.http import Data, Page, PageInfo, Unhealthy
from carebus_common.http.cursor import CursorCodec
from carebus_common.http.health import Check
from carebus_common.http.paths import percent_decode
from carebus_common.http.query import Limit, QueryModel

__all__ = ["history_routes", "store_check"]

SEVERAL: Final = "GET /patients"
PATIENT: Final = "GET /patients/{patientId}"
HISTORY: Final = "GET /patients/{patientId}/history"
EVENT: Final = "GET /events/{eventId}"

PatientId = Annotated[PatientIdRule, Path(alias="patientId")]

_MOST_PATIENTS: Final = 50

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class HistoryQuery(QueryModel):
    """Which part of a history: of one type, `from <= ts < to`, in which order, how much, and from where on."""

    type: EventType | None = Field(default=None, description="`LAB_RESULT` and `lab-result` are one type.")
    since: Timestamp | None = Field(default=None, alias="from", description="Inclusive; RFC 3339 with offset.")
    until: Timestamp | None = Field(default=None, alias="to", description="Exclusive; RFC 3339 with offset.")
    order: Literal["asc", "desc"] = Field(default="desc", description="By `ts`; newest first is `desc`.")
    limit: Limit = 50
    cursor: str | None = Field(default=None, description="`page.next` of the page before, with the same filters.")


# `%00` to `%7F` only: which other bytes are UTF-8 together is beyond a pattern worth reading.
_PATIENT_ID: Final = "([^,%]|%[0-7][0-9A-Fa-f]){1,128}"


class PatientsQuery(QueryModel):
    """Which patients: an id may hold anything, so each is percent-encoded by itself before they are joined."""

    patient_id: str = Field(
        # Leaves a quarter of what the headers may have to the token and the rest.
        max_length=12_288,
        description="1 to 50 ids, each percent-encoded, joined by commas; then encoded as any value.",
        json_schema_extra={"pattern": f"^{_PATIENT_ID}(,{_PATIENT_ID}){{0,49}}$"},
    )


class ReceiptQuery(QueryModel):
    """The event's place in the log, as its status URL carries it. Whoever has the event needs neither."""

    partition: int | None = Field(default=None, ge=0, le=2**31 - 1)
    offset: int | None = Field(default=None, ge=0, le=2**63 - 1)


def history_routes(repository: HistoryRepository, cursors: CursorCodec) -> APIRouter:
    """The routes of `permissions.PERMISSIONS`; each admits the roles its row lists."""
    router = APIRouter()

    @router.get("/patients", summary="Several patients at a glance")
    async def get_patients(
        query: Annotated[PatientsQuery, Query()],
        caller: Annotated[Caller, Security(current_caller, scopes=roles_of(SEVERAL))],
    ) -> Data[list[PatientView]]:
        """Those that there are for the caller, in no particular order; the others are left out."""
        visible = [patient_id for patient_id in _patient_ids(query) if _sees(caller, patient_id)]
        summaries = await repository.for_tenant(caller.organization_id).summaries(visible)
        return Data(data=[patient_view(patient_id, summary) for patient_id, summary in summaries.items()])

    @router.get("/patients/{patientId:segment}", summary="A patient at a glance")
    async def get_patient(
        patient_id: PatientId, caller: Annotated[Caller, Security(current_caller, scopes=roles_of(PATIENT))]
    ) -> Data[PatientView]:
        """The stay, the newest flags, and counts by type."""
        sight(PATIENT, caller, patient_id)
        summary = await repository.for_tenant(caller.organization_id).summary(patient_id)
        if summary is None:
            raise nothing_here()
        return Data(data=patient_view(patient_id, summary))

    @router.get("/patients/{patientId:segment}/history", summary="A patient's history")
    async def get_history(
        patient_id: PatientId,
        query: Annotated[HistoryQuery, Query()],
        caller: Annotated[Caller, Security(current_caller, scopes=roles_of(HISTORY))],
    ) -> Page[EventView]:
        """Events by the time they happened, newest first unless `order=asc`.

        Pages do not shift: an event that arrives meanwhile is seen if its place is still ahead.
        """
        sight(HISTORY, caller, patient_id)
        only = _filter(query)
        bookmark = _Bookmark(cursors, caller.organization_id, _bound(patient_id, query))
        after = bookmark.read(query.cursor)
        tenant = repository.for_tenant(caller.organization_id)
        found = await tenant.history(patient_id, only, limit=query.limit, after=after)
        if found is None:
            raise nothing_here()
        rows, last = found
        return Page(data=[event_view(row) for row in rows], page=PageInfo(next=bookmark.write(last)))

    @router.get("/events/{eventId:segment}", summary="A processed event")
    async def get_event(
        event_id: Annotated[EventId, Path(alias="eventId")],
        _receipt: Annotated[ReceiptQuery, Query()],
        caller: Annotated[Caller, Security(current_caller, scopes=roles_of(EVENT))],
    ) -> Data[EventView | EventStatus]:
        """The event, or for its sender its status only; 404 until it is processed."""
        row = await repository.for_tenant(caller.organization_id).event(event_id)
        if row is None:
            raise nothing_here()
        sees = sight(EVENT, caller, row["patientId"])
        return Data(data=event_status(row) if sees is Sees.STATUS else event_view(row))

    return router


def _patient_ids(query: PatientsQuery) -> set[str]:
    """Raises InvalidRequest."""
    parts = query.patient_id.split(",")
    if len(parts) > _MOST_PATIENTS or "" in parts:
        raise _no_list(f"1 to {_MOST_PATIENTS} ids, joined by commas")
    try:
        return {percent_decode(part) for part in parts}
    except ValueError as error:
        raise _no_list(str(error)) from None


def _no_list(rule: str) -> InvalidRequest:
    return InvalidRequest("The query breaks a rule.", details=[{"path": "patientId", "rule": rule}])


def _sees(caller: Caller, patient_id: str) -> bool:
    try:
        return sight(SEVERAL, caller, patient_id) is Sees.ALL
    except NotFound:
        return False


def _filter(query: HistoryQuery) -> HistoryFilter:
    if query.since and query.until and query.since > query.until:
        raise InvalidRequest("The range is reversed.", details=[{"path": "to", "rule": "not before `from`"}])
    return HistoryFilter(
        type=canonical_type(query.type) if query.type else None,
        since=query.since,
        until=query.until,
        newest_first=query.order == "desc",
    )


def _bound(patient_id: str, query: HistoryQuery) -> dict[str, Any]:
    """What a cursor is bound to: with another patient, filter or order it would point nowhere."""
    return {
        "patientId": patient_id,
        "type": canonical_type(query.type) if query.type else None,
        "from": query.since,
        "to": query.until,
        "order": query.order,
    }


@dataclass(frozen=True, slots=True)
class _Bookmark:
    """Places as cursors: milliseconds since the epoch, which is all the store keeps of a time, and the eventId."""

    cursors: CursorCodec
    organization_id: str
    query: dict[str, Any]

    def read(self, cursor: str | None) -> Place | None:
        """Raises NotFound, InvalidRequest as `CursorCodec.decode` does."""
        if cursor is None:
            return None
        milliseconds, event_id = self.cursors.decode(cursor, organization_id=self.organization_id, query=self.query)
        return Place(_EPOCH + timedelta(milliseconds=milliseconds), f"{self.organization_id}/{event_id}")

    def write(self, place: Place | None) -> str | None:
        if place is None:
            return None
        milliseconds, event_id = (place.ts - _EPOCH) // timedelta(milliseconds=1), place.row_id.rpartition("/")[2]
        return self.cursors.encode([milliseconds, event_id], organization_id=self.organization_id, query=self.query)


def store_check(repository: HistoryRepository) -> Check:
    """Healthy while reads are answered."""

    async def check() -> None:
        try:
            await repository.ping()
        except Unavailable:
            raise Unhealthy("away") from None

    return check
