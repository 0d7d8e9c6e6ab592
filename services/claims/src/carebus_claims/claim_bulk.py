"""Many claims in one request: a result for each item, and one transaction for all that may be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from carebus_claims.claim import VersionConflict, shown
from carebus_claims.claim_documents import ClaimChange
from carebus_claims.claim_models import ClaimBody, UpdateItem
from carebus_claims.claim_permissions import may_see, scope_of
from carebus_claims.claim_service import ClaimService, Request, claim_of, data_of, now, origin_of, updated
from carebus_claims.claim_writes import AlreadyExists
from carebus_common.errors import CarebusError, Conflict, InvalidRequest, NotFound
from carebus_common.http.envelopes import problems_of

__all__ = ["create_many", "update_many"]

Document = dict[str, Any]
B = TypeVar("B", bound=BaseModel)

# Each round drops what others created or changed meanwhile; more than a few mean that somebody writes the same claims.
_ROUNDS: Final = 10


class RepeatedInRequest(Conflict):
    code = "repeated-in-request"


class _Results:
    """One result an item, in their order."""

    def __init__(self, count: int, success: int) -> None:
        self._count = count
        self._success = success
        self._failed: dict[int, Document] = {}
        self.changes: dict[int, ClaimChange] = {}

    def fail(self, index: int, claim_id: str | None, error: CarebusError) -> None:
        told = {"code": error.code, "message": error.message, "details": list(error.details)}
        self._failed[index] = {"index": index, "claimId": claim_id, "status": error.status, "error": told}
        self.changes.pop(index, None)

    def fail_those(self, claim_ids: frozenset[str], error: CarebusError) -> None:
        for index, change in list(self.changes.items()):
            if change.after.claim_id in claim_ids:
                self.fail(index, change.after.claim_id, error)

    def body(self) -> bytes:
        done = {index: self._done(index, change) for index, change in self.changes.items()}
        results = [done.get(index) or self._failed[index] for index in range(self._count)]
        return data_of({"results": results, "succeeded": len(done), "failed": self._count - len(done)})

    def _done(self, index: int, change: ClaimChange) -> Document:
        claim = shown(change.after)
        return {"index": index, "claimId": change.after.claim_id, "status": self._success, "claim": claim}


async def create_many(service: ClaimService, request: Request, items: Sequence[Any]) -> bytes:
    """Create what can be created. Raises Forbidden, and Unavailable if nothing was done."""
    scope_of(request.route, request.caller)
    results, at = _Results(len(items), 201), now()
    ids: set[str] = set()
    externals: set[str] = set()
    for index, raw in enumerate(items):
        try:
            body = _valid(ClaimBody, raw)
            claim = claim_of(body, request.caller, at)
            if claim.claim_id in ids or (claim.external_id is not None and claim.external_id in externals):
                raise RepeatedInRequest("An earlier item has this claimId or externalId.")
            ids.add(claim.claim_id)
            if claim.external_id is not None:
                externals.add(claim.external_id)
            results.changes[index] = ClaimChange(None, claim, "created")
        except CarebusError as error:
            results.fail(index, _id_in(raw), error)
    return await _write(service, request, results)


async def update_many(service: ClaimService, request: Request, items: Sequence[Any]) -> bytes:
    """Change what can be changed. Raises Forbidden, and Unavailable if nothing was done."""
    scope_of(request.route, request.caller)
    results, at = _Results(len(items), 200), now()
    valid: dict[int, UpdateItem] = {}
    seen: set[str] = set()
    for index, raw in enumerate(items):
        try:
            item = _valid(UpdateItem, raw)
            if str(item.claim_id) in seen:
                raise RepeatedInRequest("An earlier item changes this claim.")
            seen.add(str(item.claim_id))
            valid[index] = item
        except CarebusError as error:
            results.fail(index, _id_in(raw), error)
    found = await service.tenant(request.caller).get_many(sorted(seen))
    for index, item in valid.items():
        claim_id = str(item.claim_id)
        try:
            claim = found.get(claim_id)
            if claim is None or not may_see(request.route, request.caller, claim):
                raise NotFound("There is nothing here.")
            if item.version is not None and item.version != claim.version:
                raise VersionConflict([claim_id])
            after, action = updated(claim, item, request, at)
            results.changes[index] = ClaimChange(claim, after, action, item.reason)
        except CarebusError as error:
            results.fail(index, claim_id, error)
    return await _write(service, request, results)


async def _write(service: ClaimService, request: Request, results: _Results) -> bytes:
    tenant = service.tenant(request.caller)
    for _ in range(_ROUNDS):
        body = results.body()
        changes = [change for _, change in sorted(results.changes.items()) if change.after is not change.before]
        try:
            await tenant.write(changes, origin_of(request), answer=request.kept(200, body))
        except (AlreadyExists, VersionConflict) as error:
            results.fail_those(error.claim_ids, error)
            continue
        service.changed(request, changes)
        return body
    raise Conflict("Others write the same claims; send those that are left again.")


def _valid(model: Callable[..., B] | type[B], raw: Any) -> B:
    try:
        return model.model_validate(raw)  # type: ignore[union-attr]
    except ValidationError as error:
        details = problems_of(error.errors(include_url=False), ("body",))
        raise InvalidRequest("The item breaks a rule.", details=details) from None


def _id_in(raw: Any) -> str | None:
    """The item's claimId as far as it is one: nothing else of a bad item is repeated."""
    claim_id = raw.get("claimId") if isinstance(raw, Mapping) else None
    return claim_id if isinstance(claim_id, str) and len(claim_id) == 36 and claim_id.isascii() else None
