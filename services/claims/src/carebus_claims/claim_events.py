"""What happens to a patient moves its claims on. Pure: from an event and the patient's claims to their changes.

admission             submitted → under_review
treatment-initiated   submitted → under_review, under_review → pending: one step, of the claims it belongs to
discharge             pending → approved
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from carebus_claims.claim import Claim, Status, move
from carebus_claims.claim_documents import ClaimChange, Origin
from carebus_common.contracts.event import canonical_type
from carebus_common.contracts.processed import ProcessedEvent

__all__ = ["MovingEvent", "changes_of", "moving"]

_STEPS: Final[Mapping[str, Mapping[Status, Status]]] = {
    "admission": {Status.SUBMITTED: Status.UNDER_REVIEW},
    "treatment-initiated": {Status.SUBMITTED: Status.UNDER_REVIEW, Status.UNDER_REVIEW: Status.PENDING},
    "discharge": {Status.PENDING: Status.APPROVED},
}


@dataclass(frozen=True, slots=True)
class MovingEvent:
    """An event that moves claims: of which kind (a canonical type), whose it is, and when it was handled.

    Of a patient's claims it means all, or, where `encounters` are known, those of these encounters and those of which
    it is not known.
    """

    organization_id: str
    patient_id: str
    event_id: str
    kind: str
    at: datetime
    encounters: frozenset[str] = frozenset()

    @property
    def origin(self) -> Origin:
        return Origin("system", "system", "event", f"{self.kind}-{self.event_id}", self.at)

    def means(self, claim: Claim) -> bool:
        return not self.encounters or claim.encounter_id is None or claim.encounter_id in self.encounters


def moving(event: ProcessedEvent, now: datetime) -> MovingEvent | None:
    """What the event is to claims; None if nothing."""
    kind = canonical_type(event.type)
    if kind not in _STEPS:
        return None
    return MovingEvent(
        event.organization_id,
        event.patient_id,
        str(event.event_id),
        kind,
        # To the millisecond, which is what the store keeps.
        now.replace(microsecond=now.microsecond // 1000 * 1000),
        frozenset(_encounters(event)) if kind == "treatment-initiated" else frozenset(),
    )


def changes_of(event: MovingEvent, claims: Iterable[Claim]) -> list[ClaimChange]:
    """How the event changes the patient's claims."""
    steps = _STEPS[event.kind]
    return [
        ClaimChange(claim, move(claim, steps[claim.status], event.at, reason=event.kind), "status-changed", event.kind)
        for claim in claims
        if claim.status in steps and event.means(claim)
    ]


def _encounters(event: ProcessedEvent) -> Iterator[str]:
    """The encounter that the event names, and the stay in which it happened: its id is an encounter's, or the
    admission's `eventId` where that named none."""
    named = event.data.get("encounterId")
    if isinstance(named, str) and named:
        yield named
    if event.stay is not None and event.stay.status == "open":
        yield event.stay.stay_id
