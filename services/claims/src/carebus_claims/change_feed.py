"""Changes of claims as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Each event's id is the change's number in its organization. One task an organization asks the store how far its changes
are, whoever wrote them; the streams of that organization then read what is new to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from carebus_claims.claim_documents import AuditEntry
from carebus_claims.claim_store import TenantClaims
from carebus_common.cancellation import cancelled
from carebus_common.errors import Unavailable

__all__ = ["ChangeFeed", "change_view"]

_EVERY: Final = timedelta(seconds=0.25)
_HEARTBEAT: Final = timedelta(seconds=10)
_PAGE: Final = 200


@dataclass(slots=True)
class _Organization:
    claims: TenantClaims
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    seq: int = 0
    streams: int = 0
    watching: asyncio.Task[None] | None = None


class ChangeFeed:
    """`close` ends all streams; their clients come back with the last id that they saw."""

    def __init__(self) -> None:
        self._organizations: dict[str, _Organization] = {}
        self._closed = asyncio.Event()

    def close(self) -> None:
        self._closed.set()
        for organization in self._organizations.values():
            organization.moved.set()

    async def stream(
        self,
        claims: TenantClaims,
        after: int,
        sees: Callable[[AuditEntry], bool],
        until: datetime,
    ) -> AsyncIterator[bytes]:
        """What comes after a number, as far as it may be seen, until the token expires or the service stops."""
        yield b": changes of claims\n\n"
        async with self._watched(claims) as organization:
            told = after
            while not self._closed.is_set() and datetime.now(UTC) < until:
                moved = organization.moved
                try:
                    entries = await claims.changes_after(after, limit=_PAGE)
                except Unavailable:
                    return  # the client comes back
                part = b""
                for entry in entries:
                    after = entry.seq
                    if sees(entry):
                        told = entry.seq
                        part += _event(entry)
                if part:
                    yield part
                if len(entries) == _PAGE:
                    continue
                try:
                    async with asyncio.timeout(_HEARTBEAT.total_seconds()):
                        await moved.wait()
                except TimeoutError:
                    # An id alone moves on where the client resumes, past what it may not see.
                    yield f"id: {after}\n\n".encode() if after != told else b": \n\n"
                    told = after

    @asynccontextmanager
    async def _watched(self, claims: TenantClaims) -> AsyncIterator[_Organization]:
        name = claims.organization_id
        organization = self._organizations.setdefault(name, _Organization(claims))
        organization.streams += 1
        if organization.watching is None:
            organization.watching = asyncio.create_task(self._watch(organization))
        try:
            yield organization
        finally:
            organization.streams -= 1
            if not organization.streams and organization.watching is not None:
                organization.watching.cancel()
                self._organizations.pop(name, None)

    async def _watch(self, organization: _Organization) -> None:
        while not cancelled():
            try:
                seq = (await organization.claims.head()).seq
            except Unavailable:
                seq = organization.seq
            if seq != organization.seq:
                organization.seq = seq
                organization.moved.set()
                organization.moved = asyncio.Event()
            await asyncio.sleep(_EVERY.total_seconds())


def change_view(entry: AuditEntry) -> dict[str, Any]:
    """An audit entry as JSON, with what changed field by field."""
    return {
        "seq": entry.seq,
        "at": entry.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "action": entry.action,
        "version": entry.version,
        "actor": {"id": entry.actor_id, "role": entry.role},
        "cause": {"kind": entry.cause_kind, "id": entry.cause_id},
        "reason": entry.reason,
        "requestId": entry.request_id,
        "changes": [{"path": c.path, "before": c.before, "after": c.after} for c in entry.changes],
    }


def _event(entry: AuditEntry) -> bytes:
    item = {**change_view(entry), "claimId": entry.claim_id, "patientId": entry.patient_id, "claim": dict(entry.after)}
    return b"id: %d\nevent: claim\ndata: %s\n\n" % (entry.seq, msgspec.json.encode(item))
