"""Who did what, when and why: rows that are only ever added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession

from carebus_common.contracts.event import new_event_id
from carebus_common.mongo import Database
from carebus_common.ops.scope import Scope

__all__ = ["AUDIT", "MAX_TARGETS", "Audit", "audit_row"]

AUDIT: Final = "ops_audit"
MAX_TARGETS: Final = 1000

Document = dict[str, Any]


def audit_row(
    scope: Scope,
    action: str,
    *,
    reason: str | None,
    request_id: str,
    target: Sequence[str] = (),
    only: Mapping[str, Any] | None = None,
    count: int = 1,
) -> Document:
    """A row of `ops_audit`. Its id is a UUIDv7, so rows sort by time."""
    return {
        "_id": str(new_event_id()),
        "at": datetime.now(UTC),
        "actor": scope.actor,
        "actorOrganizationId": scope.actor_organization_id,
        "roles": list(scope.roles),
        "action": action,
        "target": list(target[:MAX_TARGETS]),
        "filter": dict(only) if only else None,
        "reason": reason,
        "requestId": request_id,
        "count": count,
    }


class Audit:
    """The audit of one service, for the operations organization only."""

    def __init__(self, database: Database) -> None:
        self._rows = database[AUDIT]

    async def write(self, row: Document, session: AsyncClientSession | None = None) -> None:
        """Raises PyMongoError; what is audited must then not happen."""
        await self._rows.insert_one(row, session=session)

    async def page(self, scope: Scope, *, limit: int, before: str | None) -> list[Document]:
        """Rows older than the row `before`, newest first. Raises Forbidden, PyMongoError."""
        scope.require_operations()
        query = {"_id": {"$lt": before}} if before else {}
        return await self._rows.find(query).sort([("_id", -1)]).limit(limit).to_list()
