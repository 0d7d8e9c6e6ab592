"""What needs a second person, and what everybody did: for the operations organization."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query

from carebus_common.errors import InvalidRequest
from carebus_common.http import Data, Page, PageInfo
from carebus_common.http.documentation import refusals
from carebus_common.logging import get_logger
from carebus_common.ops.audit import audit_row
from carebus_common.ops.models import ApproveBody, AuditEntry, AuditQuery, PurgeBody, PurgeView
from carebus_common.ops.operations import Operations, Operator, RequestId
from carebus_common.ops.views import audit_view, purge_view

__all__ = ["add_review_routes"]

log = get_logger(__name__)


def add_review_routes(router: APIRouter, operations: Operations) -> None:
    @router.get("/purges", summary="Purges")
    async def list_purges(caller: Operator) -> Data[list[PurgeView]]:
        """The newest 100, newest first."""
        with operations.in_time():
            rows = await operations.purges.newest(operations.scope(caller))
        return Data(data=[purge_view(row) for row in rows])

    @router.post("/purges", summary="Ask for a purge")
    async def request_purge(body: PurgeBody, caller: Operator, request_id: RequestId) -> Data[PurgeView]:
        """Of settled dead letters from before a time. Nothing is deleted until somebody else approves."""
        scope = operations.scope(caller)
        scope.require_operations()
        if body.before > datetime.now(UTC):
            raise InvalidRequest(
                "The request breaks a rule.", details=[{"path": "$.before", "rule": "not in the future"}]
            )
        only: dict[str, Any] = {"before": body.before}
        audited = audit_row(scope, "purge-request", reason=body.reason, request_id=request_id, only=only)
        with operations.in_time():
            row = await operations.purges.request(scope, body.before, body.reason, audited)
        return Data(data=purge_view(row))

    @router.post("/purges/{purge_id}/approve", summary="Approve a purge", responses=refusals(422))
    async def approve_purge(
        purge_id: UUID, caller: Operator, request_id: RequestId, body: ApproveBody | None = None
    ) -> Data[PurgeView]:
        """Deletes, for some seconds; if it is not `done` then, approve again to go on. Not by who asked for it."""
        scope = operations.scope(caller)
        reason = body.reason if body else None
        audited = audit_row(scope, "purge-approve", reason=reason, request_id=request_id, target=[str(purge_id)])
        with operations.in_time():
            row = await operations.purges.approve(scope, str(purge_id), audited)
        log.info("ops-purge-approved", ops=operations.service, actor=scope.actor, deleted=row["deleted"])
        return Data(data=purge_view(row))

    @router.get("/audit", summary="Who did what, when and why")
    async def list_audit(query: Annotated[AuditQuery, Query()], caller: Operator) -> Page[AuditEntry]:
        """Newest first."""
        scope = operations.scope(caller)
        scope.require_operations()
        bound = {"list": "audit"}
        position = operations.read_cursor(query.cursor, caller, bound)
        with operations.in_time():
            rows = await operations.audit.page(scope, limit=query.limit + 1, before=position[0] if position else None)
        following: str | None = None
        if len(rows) > query.limit:
            following = operations.write_cursor([str(rows[query.limit - 1]["_id"])], caller, bound)
        return Page(data=[audit_view(row) for row in rows[: query.limit]], page=PageInfo(next=following))
