"""From what an operator asks for to dead letters: filters, and what of a choice may be redriven or discarded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from carebus_common.auth import Caller
from carebus_common.errors import Forbidden, InvalidRequest
from carebus_common.logging import get_logger, patient_hash
from carebus_common.ops.audit import audit_row
from carebus_common.ops.dead_letters import Skipped, redrivable, why_not
from carebus_common.ops.models import ChooseBody, ChosenView, FilterBody, ListQuery, SkippedView, SummaryQuery
from carebus_common.ops.operations import Operations
from carebus_common.ops.scope import Scope
from carebus_common.ops.selection import STATUSES, Place, Selection, Span, to_datetime, to_milliseconds

__all__ = ["choose", "run_id", "selection_of"]

log = get_logger(__name__)

Document = dict[str, Any]

# Those left out that an answer names.
_SKIPPED: Final = 1000
_HASH: Final = re.compile(r"[0-9a-f]{16}")


def selection_of(query: SummaryQuery | FilterBody, scope: Scope, *, within: str) -> Selection:
    """The selection; `within` is where problems are: `query`, or `body`.

    Raises InvalidRequest for a reversed range, Forbidden for a patientId by whom may see hashes only.
    """
    if query.since and query.until and query.since > query.until:
        raise _invalid(within, "until", "not before `since`")
    patients: tuple[str, ...] = ()
    fields: dict[str, Any] = {}
    if isinstance(query, ListQuery | FilterBody):
        patients = _patients(query.patient, query.organization_id or scope.organization_id, scope, within)
        fields = {"fingerprint": query.fingerprint, "type": query.type}
    if isinstance(query, ListQuery) and query.status != "all":
        fields["statuses"] = (query.status,)
    return Selection(
        organization_id=query.organization_id, patients=patients, within=Span(query.since, query.until), **fields
    )


def _patients(given: str | None, organization_id: str | None, scope: Scope, within: str) -> tuple[str, ...]:
    """The hashes that are meant: masked values are never searched."""
    if given is None:
        return ()
    is_hash = bool(_HASH.fullmatch(given))
    if not scope.reveals:
        if not is_hash:
            raise Forbidden("Give the patient's hash; a patientId needs the role operator-phi.")
        return (given,)
    if organization_id is None:
        if not is_hash:
            raise _invalid(within, "patient", "the patient's hash, or a patientId together with organizationId")
        return (given,)
    hashed = patient_hash(organization_id, given)
    return (given, hashed) if is_hash else (hashed,)


async def choose(operations: Operations, caller: Caller, action: str, body: ChooseBody, request_id: str) -> ChosenView:
    """Redrive or discard what the body names, by asking the partitions' owners; a dry run only tells."""
    scope = operations.scope(caller)
    only: Document | None = None
    following: str | None = None
    matching: tuple[int, bool] | None = None
    with operations.in_time():
        if body.ids is not None:
            if body.filter is not None or body.cursor is not None:
                raise _invalid("body", "ids", "either ids or a filter, and a cursor only with a filter")
            rows, skipped = await _by_ids(operations, scope, action, body.ids)
            matching = (len(rows), False)
        else:
            if body.filter is None or not body.filter.model_dump(exclude_none=True):
                raise _invalid("body", "filter", "ids, or a filter with at least one field")
            selection = selection_of(body.filter, scope, within="body")
            selection = replace(selection, statuses=STATUSES[:1])
            rows, skipped, following, selection = await _by_filter(operations, caller, action, body, selection)
            only = selection.document()
            if body.dry_run:
                more = redrivable(operations.redrive_cap) if action == "redrive" else {}
                matching = await operations.letters.count(scope, selection, more)
        if rows and not body.dry_run:
            ids = [row["_id"] for row in rows]
            audited = audit_row(
                scope, action, reason=body.reason, request_id=request_id, target=ids, only=only, count=len(ids)
            )
            await operations.letters.request(scope, action, rows, body.reason, audited, run_id(body.run))
            log.info(f"ops-{action}-requested", ops=operations.service, actor=scope.actor, dead_letters=len(ids))
    counted, at_least = matching if body.dry_run and matching is not None else (None, False)
    return ChosenView(
        dry_run=body.dry_run,
        matching=None if at_least else counted,
        matching_at_least=counted if at_least else None,
        requested=len(rows),
        patients=len({row["patient"] for row in rows if row.get("patient")}),
        skipped=[SkippedView.model_validate({"id": each.id, "why": each.why}) for each in skipped[:_SKIPPED]],
        more_skipped=max(0, len(skipped) - _SKIPPED),
        next=following,
    )


async def _by_ids(
    operations: Operations, scope: Scope, action: str, ids: Sequence[str]
) -> tuple[list[Document], list[Skipped]]:
    wanted = list(dict.fromkeys(ids))
    found = await operations.letters.named(scope, wanted)
    rows, skipped = _sorted_out(operations, action, [found[each] for each in wanted if each in found])
    return rows, [*skipped, *(Skipped(each, "not-found") for each in wanted if each not in found)]


async def _by_filter(
    operations: Operations, caller: Caller, action: str, body: ChooseBody, selection: Selection
) -> tuple[list[Document], list[Skipped], str | None, Selection]:
    """One page, oldest first. The first page fixes the end, or one that fails again would be met again."""
    assert body.filter is not None
    bound = {"list": action, "filter": body.filter.model_dump(mode="json")}
    position = operations.read_cursor(body.cursor, caller, bound)
    after: Place | None = None
    if position is None:
        now = datetime.now(UTC)
        until = min(selection.within.until or now, now)
    else:
        until, after = to_datetime(position[0]), Place(to_datetime(position[1]), position[2])
    selection = replace(selection, within=Span(selection.within.since, until))
    scope = operations.scope(caller)
    found = await operations.letters.oldest(scope, selection, limit=body.limit, after=after)
    following: str | None = None
    if len(found) == body.limit:
        last = found[-1]
        place = [to_milliseconds(until), to_milliseconds(last["createdAt"]), last["_id"]]
        following = operations.write_cursor(place, caller, bound)
    rows, skipped = _sorted_out(operations, action, found)
    return rows, skipped, following, selection


def _sorted_out(operations: Operations, action: str, found: Sequence[Document]) -> tuple[list[Document], list[Skipped]]:
    reasons: Mapping[str, str | None] = {row["_id"]: why_not(row, action, operations.redrive_cap) for row in found}
    skipped = [Skipped(each, why) for each, why in reasons.items() if why is not None]
    return [row for row in found if reasons[row["_id"]] is None], skipped


def run_id(run: UUID | None) -> str | None:
    """As rows keep it."""
    return None if run is None else str(run)


def _invalid(within: str, name: str, rule: str) -> InvalidRequest:
    path = f"$.{name}" if within == "body" else name
    return InvalidRequest("The request breaks a rule.", details=[{"path": path, "rule": rule}])
