"""A claim: what it is made of, and what may become of it. Pure; every rule about claims that is not about callers.

    submitted ──▶ under_review ──▶ pending ──▶ approved ──▶ paid
                                      └──────▶ denied

`submitted`: received. `under_review`: its patient was admitted, or somebody looks at it. `pending`: it waits for the
decision. An approved, paid or denied claim does not change any more, but for the payment of an approved one.

Money is `Decimal` with two decimals, never float; a claim has one currency.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from carebus_common.errors import Conflict, NotAllowed

__all__ = [
    "OPEN",
    "TRANSITIONS",
    "Claim",
    "ClaimImmutable",
    "FieldChange",
    "Line",
    "PaymentNotAllowed",
    "Status",
    "TransitionNotAllowed",
    "VersionConflict",
    "amend",
    "assign",
    "changes_between",
    "move",
    "new_claim",
    "pay",
    "shown",
    "total_of",
]


class Status(StrEnum):
    SUBMITTED = "submitted"
    UNDER_REVIEW = "under_review"
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    PAID = "paid"


# The one table of what may follow what.
TRANSITIONS: Final[Mapping[Status, frozenset[Status]]] = {
    Status.SUBMITTED: frozenset({Status.UNDER_REVIEW}),
    Status.UNDER_REVIEW: frozenset({Status.PENDING}),
    Status.PENDING: frozenset({Status.APPROVED, Status.DENIED}),
    Status.APPROVED: frozenset({Status.PAID}),
    Status.DENIED: frozenset(),
    Status.PAID: frozenset(),
}
# Those on which somebody still has to work; they are counted by age and by processor.
OPEN: Final = frozenset({Status.SUBMITTED, Status.UNDER_REVIEW, Status.PENDING})


class TransitionNotAllowed(NotAllowed):
    code = "transition-not-allowed"


class ClaimImmutable(NotAllowed):
    code = "claim-immutable"


class PaymentNotAllowed(NotAllowed):
    code = "payment-not-allowed"


class VersionConflict(Conflict):
    """These claims were changed meanwhile: read them again, then decide again."""

    code = "version-conflict"

    def __init__(self, claim_ids: Iterable[str]) -> None:
        super().__init__("The claim was changed meanwhile; read it again.")
        self.claim_ids = frozenset(claim_ids)


@dataclass(frozen=True, slots=True)
class Line:
    """One service: `amount` is the charge for all its `units`."""

    code: str
    units: int
    amount: Decimal
    code_system: str | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of one organization, as of `version`, which starts at 1 and grows by one with each change."""

    organization_id: str
    claim_id: str
    version: int
    status: Status
    patient_id: str
    currency: str
    lines: tuple[Line, ...]
    created_at: datetime
    updated_at: datetime
    created_by: str
    provider_id: str | None = None
    payer_id: str | None = None
    assigned_processor_id: str | None = None
    encounter_id: str | None = None
    external_id: str | None = None
    service_date: datetime | None = None
    status_reason: str | None = None
    decided_at: datetime | None = None
    paid_at: datetime | None = None
    paid: Decimal = Decimal("0.00")
    # Derived from the lines, kept so that it can be filtered and summed.
    total: Decimal = field(default=Decimal("0.00"))


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field's value before and after, as JSON shows it; money as text with two decimals."""

    path: str
    before: Any
    after: Any


def total_of(lines: Sequence[Line]) -> Decimal:
    return sum((line.amount for line in lines), Decimal("0.00"))


def new_claim(claim: Claim) -> Claim:
    """A claim as it is entered: submitted, version 1, with its total."""
    return replace(claim, version=1, status=Status.SUBMITTED, total=total_of(claim.lines), paid=Decimal("0.00"))


def amend(claim: Claim, now: datetime, **fields: Any) -> Claim:
    """The claim with other contents. Raises ClaimImmutable once it is decided."""
    if claim.status not in OPEN:
        raise ClaimImmutable(f"A claim that is {claim.status} does not change any more.")
    changed = replace(claim, **fields)
    changed = replace(changed, total=total_of(changed.lines))
    return claim if changed == claim else replace(changed, version=claim.version + 1, updated_at=now)


def assign(claim: Claim, processor_id: str | None, now: datetime) -> Claim:
    """Give the claim to a processor, or take it from everybody. Raises ClaimImmutable once it is decided."""
    return amend(claim, now, assigned_processor_id=processor_id)


def move(claim: Claim, to: Status, now: datetime, *, reason: str | None = None) -> Claim:
    """The claim in its next status. Raises TransitionNotAllowed; a payment is made with `pay`."""
    if to is Status.PAID:
        raise TransitionNotAllowed("A claim is paid by entering its payment.", details=[_rule("status", "not paid")])
    _check_transition(claim, to)
    decided = now if to in (Status.APPROVED, Status.DENIED) else claim.decided_at
    return replace(
        claim, status=to, status_reason=reason, decided_at=decided, version=claim.version + 1, updated_at=now
    )


def pay(claim: Claim, amount: Decimal, now: datetime) -> Claim:
    """The claim with its payment. Raises TransitionNotAllowed unless approved, PaymentNotAllowed for a bad sum."""
    _check_transition(claim, Status.PAID)
    if not Decimal(0) < amount <= claim.total:
        raise PaymentNotAllowed(
            "A payment is more than nothing and at most the total.", details=[_rule("amount", "0 < amount <= total")]
        )
    return replace(claim, status=Status.PAID, paid=amount, paid_at=now, version=claim.version + 1, updated_at=now)


def changes_between(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> tuple[FieldChange, ...]:
    """What differs between two claims as `shown`, field by field; `updatedAt` and `version` go without saying."""
    old = before or {}
    return tuple(
        FieldChange(path, old.get(path), value)
        for path, value in after.items()
        if path not in _SAID and old.get(path) != value
    )


_SAID: Final = frozenset({"claimId", "version", "createdAt", "createdBy", "updatedAt"})


def _check_transition(claim: Claim, to: Status) -> None:
    allowed = TRANSITIONS[claim.status]
    if to not in allowed:
        then = " or ".join(sorted(allowed)) or "nothing"
        raise TransitionNotAllowed(
            f"A claim that is {claim.status} can become {then}, not {to}.", details=[_rule("status", then)]
        )


def _rule(path: str, rule: str) -> Mapping[str, str]:
    return {"path": f"$.{path}", "rule": rule}


def shown(claim: Claim) -> dict[str, Any]:
    """The claim as JSON: money as text with two decimals, times as RFC 3339 in UTC with milliseconds."""
    return {
        "claimId": claim.claim_id,
        "version": claim.version,
        "status": str(claim.status),
        "statusReason": claim.status_reason,
        "patientId": claim.patient_id,
        "providerId": claim.provider_id,
        "payerId": claim.payer_id,
        "assignedProcessorId": claim.assigned_processor_id,
        "encounterId": claim.encounter_id,
        "externalId": claim.external_id,
        "serviceDate": _time(claim.service_date),
        "currency": claim.currency,
        "lines": [
            {
                "code": line.code,
                "codeSystem": line.code_system,
                "description": line.description,
                "units": line.units,
                "amount": f"{line.amount:.2f}",
            }
            for line in claim.lines
        ],
        "total": f"{claim.total:.2f}",
        "paid": f"{claim.paid:.2f}",
        "createdAt": _time(claim.created_at),
        "createdBy": claim.created_by,
        "updatedAt": _time(claim.updated_at),
        "decidedAt": _time(claim.decided_at),
        "paidAt": _time(claim.paid_at),
    }


def _time(value: datetime | None) -> str | None:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if value else None
