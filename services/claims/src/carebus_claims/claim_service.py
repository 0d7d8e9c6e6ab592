"""What may be done with claims, by whom: permission first, then the rules of `claim.py`, then one write.

Methods take the verified caller. What the caller may not see raises NotFound, as if it did not exist.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, Final, cast
from uuid import UUID, uuid4

import msgspec

from carebus_claims.cache import CLAIM, CLAIMS, ClaimsCache
from carebus_claims.claim import Claim, Status, VersionConflict, amend, assign, move, new_claim, pay, shown
from carebus_claims.claim_documents import Action, AuditEntry, ClaimChange, Origin
from carebus_claims.claim_models import (
    ChangedFields,
    ClaimBody,
    ClaimFilter,
    UpdateItem,
)
from carebus_claims.claim_permissions import CLAIM_PERMISSIONS, may_see, scope_of
from carebus_claims.claim_queries import ClaimQuery, Place, SortField
from carebus_claims.claim_store import ClaimStore, OrganizationHead, Tenant, TenantClaims
from carebus_claims.requests import Answer
from carebus_common.auth import Caller
from carebus_common.errors import Forbidden, InvalidRequest, NotFound

__all__ = [
    "AnswerKept",
    "ClaimService",
    "Request",
    "changed",
    "claim_of",
    "claim_query",
    "data_of",
    "now",
    "origin_of",
    "updated",
]

Document = dict[str, Any]
# Makes the answer to keep out of its status and body; None where the request has no Idempotency-Key.
AnswerKept = Callable[[int, bytes], Answer | None]

_MAX_IDS: Final = 200
_ROLES: Final = ("admin", "processor", "provider", "patient")


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks for what: `route` is a row of the permission table."""

    route: str
    caller: Caller
    request_id: str
    kept: AnswerKept = lambda _status, _body: None


def now() -> datetime:
    """To the millisecond, which is what the store keeps."""
    at = datetime.now(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def data_of(value: Any) -> bytes:
    return msgspec.json.encode({"data": value})


class ClaimService:
    """`on_change` is called after each write with the organization and the claims' ids.

    What is only read may come from `cache`, which the store's writes must be around; what is to be changed is read
    from the store.
    """

    def __init__(
        self,
        store: ClaimStore,
        *,
        cache: ClaimsCache | None = None,
        on_change: Callable[[str, list[str]], None] = lambda _o, _c: None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._on_change = on_change

    def tenant(self, caller: Caller) -> TenantClaims:
        return self._store.of(Tenant(caller.organization_id))

    # --- reading --------------------------------------------------------------------------------------------------

    async def get(self, request: Request, claim_id: str) -> Claim:
        scope_of(request.route, request.caller)
        load: Callable[[], Awaitable[Claim | None]] = partial(self.tenant(request.caller).get, claim_id)
        if self._cache is None:
            return self._seen(request, await load())
        organization_id = request.caller.organization_id
        found = await self._cache.claim(organization_id, claim_id, CLAIM, load)
        return self._seen(request, found)

    async def page(self, request: Request, query: ClaimQuery, *, limit: int, after: Place | None) -> list[Claim]:
        load = partial(self.tenant(request.caller).page, query, limit=limit, after=after)
        # Claims by their ids are hardly asked for twice in the same company.
        if self._cache is None or query.claim_ids:
            return await load()
        # With the scope, which is part of the query: who sees less has lists of their own.
        return await self._cache.listing(request.caller.organization_id, repr((query, limit, after)), CLAIMS, load)

    async def audit(self, request: Request, claim_id: str, *, limit: int, after_seq: int) -> list[AuditEntry]:
        await self.get(request, claim_id)
        return await self.tenant(request.caller).audit_of(claim_id, limit=limit, after_seq=after_seq)

    async def head(self, request: Request) -> OrganizationHead:
        scope_of(request.route, request.caller)
        return await self.tenant(request.caller).head()

    def _seen(self, request: Request, claim: Claim | None) -> Claim:
        if claim is None or not may_see(request.route, request.caller, claim):
            raise NotFound("There is nothing here.")
        return claim

    # --- writing --------------------------------------------------------------------------------------------------

    async def create(self, request: Request, body: ClaimBody) -> tuple[int, bytes]:
        """The answer's status and body. Raises AlreadyExists."""
        scope_of(request.route, request.caller)
        claim = claim_of(body, request.caller, now())
        answer = data_of(shown(claim))
        await self._write(request, [ClaimChange(None, claim, "created")], request.kept(201, answer))
        return 201, answer

    async def change(
        self,
        request: Request,
        claim_id: str,
        version: int | None,
        action: Action,
        reason: str | None,
        to: Callable[[Claim, datetime], Claim],
    ) -> tuple[int, bytes]:
        """The answer's status and body. Raises NotFound, VersionConflict, and what `to` raises."""
        before = await self._current(request, claim_id)
        if version is not None and before.version != version:
            raise VersionConflict([claim_id])
        after = to(before, now())
        answer = data_of(shown(after))
        changes = [] if after is before else [ClaimChange(before, after, action, reason)]
        await self._write(request, changes, request.kept(200, answer))
        return 200, answer

    async def _current(self, request: Request, claim_id: str) -> Claim:
        scope_of(request.route, request.caller)
        return self._seen(request, await self.tenant(request.caller).get(claim_id))

    async def _write(self, request: Request, changes: list[ClaimChange], answer: Answer | None) -> None:
        tenant = self.tenant(request.caller)
        await tenant.write(changes, origin_of(request), answer=answer)
        self.changed(request, changes)

    def changed(self, request: Request, changes: list[ClaimChange]) -> None:
        if changes:
            self._on_change(request.caller.organization_id, [change.after.claim_id for change in changes])


def origin_of(request: Request) -> Origin:
    role = next((r for r in _ROLES if r in request.caller.roles and r in CLAIM_PERMISSIONS[request.route]), "")
    return Origin(request.caller.subject, role, "request", request.request_id, now(), request.request_id)


def claim_of(body: ClaimBody, caller: Caller, at: datetime) -> Claim:
    return new_claim(
        Claim(
            organization_id=caller.organization_id,
            claim_id=str(body.claim_id or uuid4()),
            version=1,
            status=Status.SUBMITTED,
            patient_id=body.patient_id,
            provider_id=body.provider_id,
            payer_id=body.payer_id,
            assigned_processor_id=body.assigned_processor_id,
            encounter_id=body.encounter_id,
            external_id=body.external_id,
            service_date=_to_millisecond(body.service_date),
            currency=body.currency,
            lines=tuple(line.line() for line in body.lines),
            created_at=at,
            updated_at=at,
            created_by=caller.subject,
        )
    )


_FIELDS: Final = ("provider_id", "payer_id", "encounter_id", "external_id", "service_date", "lines")


def changed(claim: Claim, body: ChangedFields, at: datetime) -> Claim:
    """The claim with the fields that the body names. Raises InvalidRequest, ClaimImmutable."""
    fields: Document = {name: getattr(body, name) for name in _FIELDS if name in body.model_fields_set}
    if "lines" in fields:
        if body.lines is None:
            raise InvalidRequest("A claim has lines.", details=[{"path": "lines", "rule": "1 to 200 lines"}])
        fields["lines"] = tuple(line.line() for line in body.lines)
    if "service_date" in fields:
        fields["service_date"] = _to_millisecond(body.service_date)
    return amend(claim, at, **fields)


def updated(claim: Claim, item: UpdateItem, request: Request, at: datetime) -> tuple[Claim, Action]:
    """The claim with what one item of a bulk update asks for. Raises the domain's errors, InvalidRequest, Forbidden."""
    given = item.model_fields_set & {"set", "status", "assigned_processor_id", "payment"}
    if len(given) != 1:
        raise _problem("$", "one of `set`, `status`, `assignedProcessorId` and `payment`")
    if "status" in given:
        if item.status is None or item.reason is None:
            raise _problem("reason", "a status is changed for a reason")
        return move(claim, Status(item.status), at, reason=item.reason), "status-changed"
    if "set" in given:
        if item.set is None:
            raise _problem("set", "the fields to change")
        return changed(claim, item.set, at), "updated"
    route = "POST /claims/{claimId}/assign" if "assigned_processor_id" in given else "POST /claims/{claimId}/payment"
    if not request.caller.roles & CLAIM_PERMISSIONS[route].keys():
        raise Forbidden("The token lacks the role this needs.")
    if "assigned_processor_id" in given:
        return assign(claim, item.assigned_processor_id, at), "assigned"
    if item.payment is None:
        raise _problem("payment", "an amount")
    return pay(claim, Decimal(item.payment.amount), at), "paid"


def claim_query(query: ClaimFilter, route: str, caller: Caller) -> ClaimQuery:
    """Raises InvalidRequest for a reversed range, an unknown status or what is no id; Forbidden."""
    scope = scope_of(route, caller)
    if query.since and query.until and query.since > query.until:
        raise _problem("to", "not before `from`")
    least, most = _decimal(query.min_total), _decimal(query.max_total)
    if least is not None and most is not None and least > most:
        raise _problem("maxTotal", "not below `minTotal`")
    sort = query.sort.lstrip("-")
    return ClaimQuery(
        scope=scope,
        statuses=_statuses(query.status),
        claim_ids=_claim_ids(query.claim_id),
        patient_id=query.patient_id,
        provider_id=query.provider_id,
        assigned_processor_id=query.assigned_processor_id,
        created_from=query.since,
        created_to=query.until,
        min_total=least,
        max_total=most,
        sort=cast(SortField, sort),
        descending=query.sort.startswith("-"),
    )


def _statuses(text: str | None) -> tuple[Status, ...]:
    if text is None:
        return ()
    words = text.split(",")
    if not {*words} <= {str(status) for status in Status}:
        raise _problem("status", f"of {', '.join(Status)}, joined by commas")
    return tuple(Status(word) for word in words)


def _claim_ids(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    words = text.split(",")
    if len(words) > _MAX_IDS:
        raise _problem("claimId", f"at most {_MAX_IDS} ids")
    try:
        return tuple(str(msgspec.convert(word, UUID)) for word in words)
    except msgspec.ValidationError:
        raise _problem("claimId", "UUIDs, joined by commas") from None


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _to_millisecond(at: datetime | None) -> datetime | None:
    return at if at is None else at.astimezone(UTC).replace(microsecond=at.microsecond // 1000 * 1000)


def _problem(path: str, rule: str) -> InvalidRequest:
    return InvalidRequest("The request breaks a rule.", details=[{"path": path, "rule": rule}])
