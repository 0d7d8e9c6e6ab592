"""Dead letters: what there is, what is in one, and what shall become of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query
from pydantic import ValidationError

from carebus_common.consumer.change import PatientEvent
from carebus_common.errors import NotAllowed
from carebus_common.http import Data, Page, PageInfo
from carebus_common.http.documentation import refusals
from carebus_common.http.envelopes import problems_of
from carebus_common.logging import get_logger
from carebus_common.ops.audit import audit_row
from carebus_common.ops.choosing import choose, run_id, selection_of
from carebus_common.ops.dead_letters import why_not
from carebus_common.ops.masking import diff, parsed
from carebus_common.ops.models import (
    ChooseBody,
    ChosenView,
    DeadLetterItem,
    DeadLetterView,
    EditBody,
    ListQuery,
    PendingView,
    ReasonBody,
    RevealedView,
    RunQuery,
    RunView,
    SummaryQuery,
    SummaryRow,
)
from carebus_common.ops.operations import LetterIdInPath, Operations, Operator, OperatorPhi, RequestId
from carebus_common.ops.scope import Scope, nothing_here
from carebus_common.ops.selection import Place, to_datetime, to_milliseconds
from carebus_common.ops.views import dead_letter_view, item_view, revealed_view, run_view, summary_row

__all__ = ["add_dead_letter_routes"]

log = get_logger(__name__)

Document = dict[str, Any]

# An event's data are at most 256 KiB; what services add to it is less.
_MAX_EDITED: Final = 512 * 1024


def add_dead_letter_routes(router: APIRouter, operations: Operations) -> None:
    # In this order: `summary` is a path of its own and not an id.
    _add_reading(router, operations)
    _add_deciding(router, operations)


def _add_reading(router: APIRouter, operations: Operations) -> None:
    letters = operations.letters

    @router.get("/dead-letters/summary", summary="Dead letters by cause")
    async def summarize_dead_letters(
        query: Annotated[SummaryQuery, Query()], caller: Operator
    ) -> Data[list[SummaryRow]]:
        """One row a fingerprint, those with the most open ones first."""
        scope = operations.scope(caller)
        with operations.in_time():
            groups = await letters.summary(scope, selection_of(query, scope, within="query"))
        return Data(data=[summary_row(group) for group in groups])

    @router.get("/dead-letters", summary="Dead letters")
    async def list_dead_letters(query: Annotated[ListQuery, Query()], caller: Operator) -> Page[DeadLetterItem]:
        """Newest first, without payloads. Pages do not shift when more arrive."""
        scope = operations.scope(caller)
        selection = selection_of(query, scope, within="query")
        bound = {"list": "dead-letters", **query.model_dump(mode="json", exclude={"cursor", "limit"})}
        position = operations.read_cursor(query.cursor, caller, bound)
        after = Place(to_datetime(position[0]), position[1]) if position else None
        with operations.in_time():
            rows = await letters.page(scope, selection, limit=query.limit + 1, after=after)
        following: str | None = None
        if len(rows) > query.limit:
            last = rows[query.limit - 1]
            place = [to_milliseconds(last["createdAt"]), last["_id"]]
            following = operations.write_cursor(place, caller, bound)
        return Page(data=[item_view(row) for row in rows[: query.limit]], page=PageInfo(next=following))

    @router.get("/dead-letters/{dead_letter_id:segment}", summary="A dead letter")
    async def get_dead_letter(dead_letter_id: LetterIdInPath, caller: Operator) -> Data[DeadLetterView]:
        """All there is to know of it, its payload masked."""
        return Data(data=dead_letter_view(await _found(operations, operations.scope(caller), dead_letter_id)))

    @router.get("/requests", summary="Requests not carried out yet")
    async def count_requests(caller: Operator) -> Data[PendingView]:
        """What was asked for and the partitions' owners have not come to."""
        with operations.in_time():
            requests, named = await letters.pending(operations.scope(caller))
        return Data(data=PendingView(requests=requests, dead_letters=named))

    @router.get("/runs/{run}", summary="What a run came to so far")
    async def get_run(run: UUID, query: Annotated[RunQuery, Query()], caller: Operator) -> Data[RunView]:
        """Of all requests that were made with this `run`, as far as the caller may see; empty where there are none."""
        scope = operations.scope(caller)
        with operations.in_time():
            # In this order: an owner takes a request away after its outcomes are there.
            requests, named = await letters.pending(scope, str(run))
            counts, again = await letters.outcomes(scope, str(run)) if query.outcomes == "true" else ({}, [])
        return Data(data=run_view(requests, named, counts, again))


def _add_deciding(router: APIRouter, operations: Operations) -> None:
    letters = operations.letters

    @router.post("/dead-letters/redrive", summary="Redrive dead letters")
    async def redrive_dead_letters(body: ChooseBody, caller: Operator, request_id: RequestId) -> Data[ChosenView]:
        """Ask for another try, in each patient's order. A dry run unless `dryRun` is false."""
        return Data(data=await choose(operations, caller, "redrive", body, request_id))

    @router.post("/dead-letters/discard", summary="Discard dead letters")
    async def discard_dead_letters(body: ChooseBody, caller: Operator, request_id: RequestId) -> Data[ChosenView]:
        """Give events up: they never take effect, and their patients go on. A dry run unless `dryRun` is false."""
        return Data(data=await choose(operations, caller, "discard", body, request_id))

    @router.post("/dead-letters/{dead_letter_id:segment}/reveal", summary="A dead letter's payload as it is")
    async def reveal_dead_letter(
        dead_letter_id: LetterIdInPath, body: ReasonBody, caller: OperatorPhi, request_id: RequestId
    ) -> Data[RevealedView]:
        """Patient data: the audit has the reason before the answer leaves."""
        scope = operations.scope(caller)
        row = await _found(operations, scope, dead_letter_id)
        with operations.in_time():
            await operations.audit.write(
                audit_row(scope, "reveal", reason=body.reason, request_id=request_id, target=[dead_letter_id])
            )
        log.info("ops-dead-letter-revealed", ops=operations.service, actor=scope.actor, dead_letter=dead_letter_id)
        return Data(data=revealed_view(row))

    @router.post(
        "/dead-letters/{dead_letter_id:segment}/edit",
        summary="Edit a dead letter and redrive it",
        responses=refusals(409, 422),
    )
    async def edit_dead_letter(
        dead_letter_id: LetterIdInPath, body: EditBody, caller: OperatorPhi, request_id: RequestId
    ) -> Data[DeadLetterView]:
        """Only one that its patient waits for. Event, patient and organization stay; the audit keeps what was changed
        where, without values.
        """
        scope = operations.scope(caller)
        row = await _found(operations, scope, dead_letter_id)
        if (why := why_not(row, "redrive", operations.redrive_cap)) is not None:
            raise NotAllowed("This dead letter cannot be redriven.", details=[{"path": "dead_letter_id", "rule": why}])
        edited = _edited(row, body.value, operations.decode)
        entry = {
            "by": scope.actor,
            "at": datetime.now(UTC),
            "reason": body.reason,
            "diff": diff(parsed(row.get("edited") or row.get("value")), body.value),
        }
        audited = audit_row(scope, "edit", reason=body.reason, request_id=request_id, target=[dead_letter_id])
        with operations.in_time():
            await letters.edit(scope, row, edited, entry, audited, run_id(body.run))
        log.info("ops-dead-letter-edited", ops=operations.service, actor=scope.actor, dead_letter=dead_letter_id)
        return Data(data=dead_letter_view(await _found(operations, scope, dead_letter_id)))


async def _found(operations: Operations, scope: Scope, dead_letter_id: str) -> Document:
    with operations.in_time():
        row = await operations.letters.find(scope, dead_letter_id)
    if row is None:
        raise nothing_here()
    return row


def _edited(row: Document, value: dict[str, Any], decode: Callable[[bytes], PatientEvent]) -> bytes:
    """The edited record's value. Raises NotAllowed if it is no event, or another one than the record's."""
    edited = msgspec.json.encode(value)
    if len(edited) > _MAX_EDITED:
        raise _not_allowed([{"path": "$.value", "rule": f"at most {_MAX_EDITED} bytes"}])
    try:
        event = decode(edited)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False, include_context=False)
        raise _not_allowed(problems_of(errors, within=("body", "value"))) from None
    except Exception:
        # Whatever the decoder says may quote the value.
        raise _not_allowed([{"path": "$.value", "rule": "the event that the topic promises"}]) from None
    organization_id, patient_id, event_id = row.get("organizationId"), row.get("patientId"), row.get("eventId")
    kept = {
        # Without one nobody knows whose patient waits, and the event would be another tenant's.
        "organizationId": bool(organization_id) and event.organization_id == organization_id,
        # The record's key decides whose queue it is in.
        "patientId": event.patient_id == patient_id and event.patient_id.encode() == row.get("key"),
        "eventId": event_id is None or str(event.event_id) == event_id,
    }
    if problems := [
        {"path": f"$.value.{name}", "rule": "the same as the record's"} for name, same in kept.items() if not same
    ]:
        raise _not_allowed(problems)
    return edited


def _not_allowed(details: list[dict[str, str]]) -> NotAllowed:
    return NotAllowed("The event would not be this record's.", details=details)
