"""`GET /claims/audit/verify`: whether an organization's audit is whole."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import APIRouter, Query, Security
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from carebus_claims.audit_trail import AuditTrail, Verification
from carebus_claims.chain import Link
from carebus_claims.permissions import roles_of
from carebus_common.auth import Caller, current_caller
from carebus_common.http import Data
from carebus_common.http.query import QueryModel

__all__ = ["AuditView", "audit_routes", "parse_anchor"]

VERIFY: Final = "GET /claims/audit/verify"

_ANCHOR: Final = r"^[0-9]{1,12}:[0-9a-f]{64}$"


class _View(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, frozen=True)


class PlaceView(_View):
    """An entry: its number in the chain, and its hash."""

    seq: int
    hash: str


class FaultView(_View):
    """Where the chain is broken, and how."""

    seq: int
    kind: str


class AuditView(_View):
    """`at` is the last entry: kept elsewhere, it is an anchor against which a later verification can be made."""

    organization_id: str
    whole: bool
    entries: int = Field(description="That were read and checked.")
    archived: int = Field(description="That were moved to files before.")
    at: PlaceView
    faults: list[FaultView] = Field(description="The first 1,000, in their order.")
    more_faults: int


class VerifyQuery(QueryModel):
    anchor: str | None = Field(
        default=None, pattern=_ANCHOR, description="`SEQ:HASH` of an entry that the chain must still have."
    )


def audit_routes(trail: AuditTrail) -> APIRouter:
    router = APIRouter()

    @router.get("/claims/audit/verify", summary="Verify the audit")
    async def verify_audit(
        query: Annotated[VerifyQuery, Query()],
        caller: Annotated[Caller, Security(current_caller, scopes=roles_of(VERIFY))],
    ) -> Data[AuditView]:
        """Every entry of the organization, and its head. Takes about a second for 20,000 entries."""
        anchor = parse_anchor(query.anchor) if query.anchor else None
        return Data(data=audit_view(await trail.verify(caller.organization_id, anchor=anchor)))

    return router


def parse_anchor(text: str) -> Link:
    """Raises ValueError unless it is `SEQ:HASH`."""
    if not re.fullmatch(_ANCHOR, text):
        raise ValueError("a number, a colon and 64 hexadecimal digits, as a verification tells them")
    seq, _, last = text.partition(":")
    return Link(int(seq), last)


def audit_view(found: Verification) -> AuditView:
    return AuditView(
        organization_id=found.organization_id,
        whole=found.whole,
        entries=found.entries,
        archived=found.archived,
        at=PlaceView(seq=found.at.seq, hash=found.at.hash),
        faults=[FaultView(seq=fault.seq, kind=fault.kind) for fault in found.faults],
        more_faults=found.more_faults,
    )
