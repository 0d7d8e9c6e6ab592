"""Claims and audit entries as the store has them. Pure.

`claims`: `{_id: "organization/claimId", organizationId, claimId, version, status, statusReason, patientId, providerId,
payerId, assignedProcessorId, encounterId, externalId, serviceDate, currency, lines: [{code, codeSystem, description,
units, amount}], total, paid, createdAt, createdBy, updatedAt, decidedAt, paidAt}`; money is Decimal128, times are UTC.

`claims_audit`: one row a change, which is the audit's entry, the message to publish and what subscribers see:
`{_id: "organization/seq of 12 digits", organizationId, seq, at, actor: {id, role}, action, claimId, patientId, version,
before, after, cause: {kind, id}, reason, requestId, prev, hash, publishedAt}`; `before` and `after` are the whole claim
as `claim.shown` gives it, `before` is None for a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

from bson import Decimal128

from carebus_claims.chain import Link, hash_of
from carebus_claims.claim import Claim, FieldChange, Line, Status, changes_between, shown

__all__ = [
    "AuditEntry",
    "ClaimChange",
    "Origin",
    "audit_row",
    "claim_from_row",
    "claim_row",
    "entry_from_row",
    "row_id",
    "seq_id",
]

Document = dict[str, Any]
Action = Literal["created", "updated", "assigned", "status-changed", "paid"]

_NAMES: Final = {
    "claim_id": "claimId",
    "version": "version",
    "status_reason": "statusReason",
    "patient_id": "patientId",
    "provider_id": "providerId",
    "payer_id": "payerId",
    "assigned_processor_id": "assignedProcessorId",
    "encounter_id": "encounterId",
    "external_id": "externalId",
    "service_date": "serviceDate",
    "currency": "currency",
    "created_at": "createdAt",
    "created_by": "createdBy",
    "updated_at": "updatedAt",
    "decided_at": "decidedAt",
    "paid_at": "paidAt",
}


@dataclass(frozen=True, slots=True)
class ClaimChange:
    """One change of one claim: `before` is None for a new one."""

    before: Claim | None
    after: Claim
    action: Action
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Who changed something and why: a request of somebody, or an event (`cause_id` is `{type}-{eventId}`)."""

    actor_id: str
    role: str
    cause_kind: Literal["request", "event"]
    cause_id: str
    at: datetime
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One entry of an organization's audit; `before` and `after` are the claim as JSON."""

    organization_id: str
    seq: int
    at: datetime
    actor_id: str
    role: str
    action: Action
    claim_id: str
    patient_id: str
    version: int
    before: Mapping[str, Any] | None
    after: Mapping[str, Any]
    cause_kind: str
    cause_id: str
    reason: str | None
    request_id: str | None

    @property
    def changes(self) -> tuple[FieldChange, ...]:
        return changes_between(self.before, self.after)


def row_id(organization_id: str, claim_id: str) -> str:
    return f"{organization_id}/{claim_id}"


def seq_id(organization_id: str, seq: int) -> str:
    return f"{organization_id}/{seq:012d}"


def claim_row(claim: Claim) -> Document:
    row: Document = {"_id": row_id(claim.organization_id, claim.claim_id), "organizationId": claim.organization_id}
    row.update((name, getattr(claim, attribute)) for attribute, name in _NAMES.items())
    row["status"] = str(claim.status)
    row["lines"] = [
        {
            "code": line.code,
            "codeSystem": line.code_system,
            "description": line.description,
            "units": line.units,
            "amount": Decimal128(line.amount),
        }
        for line in claim.lines
    ]
    row["total"], row["paid"] = Decimal128(claim.total), Decimal128(claim.paid)
    return row


def claim_from_row(row: Mapping[str, Any]) -> Claim:
    return Claim(
        organization_id=row["organizationId"],
        status=Status(row["status"]),
        lines=tuple(
            Line(
                line["code"],
                line["units"],
                _money(line["amount"]),
                code_system=line.get("codeSystem"),
                description=line.get("description"),
            )
            for line in row["lines"]
        ),
        total=_money(row["total"]),
        paid=_money(row["paid"]),
        **{attribute: row.get(name) for attribute, name in _NAMES.items()},  # type: ignore[arg-type]
    )


def audit_row(change: ClaimChange, origin: Origin, after: Link, key: bytes) -> Document:
    """The next entry of a chain that stands at `after`, sealed with the audit's key."""
    claim = change.after
    row: Document = {
        "_id": seq_id(claim.organization_id, after.seq + 1),
        "organizationId": claim.organization_id,
        "seq": after.seq + 1,
        "at": origin.at,
        "actor": {"id": origin.actor_id, "role": origin.role},
        "action": change.action,
        "claimId": claim.claim_id,
        "patientId": claim.patient_id,
        "version": claim.version,
        "before": None if change.before is None else shown(change.before),
        "after": shown(claim),
        "cause": {"kind": origin.cause_kind, "id": origin.cause_id},
        "reason": change.reason,
        "requestId": origin.request_id,
        "prev": after.hash,
    }
    row["hash"] = hash_of(row, key)
    row["publishedAt"] = None
    return row


def entry_from_row(row: Mapping[str, Any]) -> AuditEntry:
    return AuditEntry(
        organization_id=row["organizationId"],
        seq=row["seq"],
        at=row["at"],
        actor_id=row["actor"]["id"],
        role=row["actor"]["role"],
        action=row["action"],
        claim_id=row["claimId"],
        patient_id=row["patientId"],
        version=row["version"],
        before=row["before"],
        after=row["after"],
        cause_kind=row["cause"]["kind"],
        cause_id=row["cause"]["id"],
        reason=row["reason"],
        request_id=row["requestId"],
    )


def _money(value: Decimal128) -> Decimal:
    return value.to_decimal()
