"""Which claims an event moves, and where to."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from carebus_claims.claim import Claim, Line, Status
from carebus_claims.claim_documents import Origin
from carebus_claims.claim_events import changes_of, moving
from carebus_claims.handlers import record_history
from carebus_common.consumer.change import Delivery, Position

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
STAY = {"stayId": "stay-1", "status": "open", "openedAt": NOW}


def claim(status: Status = Status.SUBMITTED, encounter_id: str | None = None) -> Claim:
    return Claim(
        organization_id="org-a",
        claim_id=str(uuid4()),
        version=3,
        status=status,
        patient_id="patient-1",
        currency="CAD",
        lines=(Line("99213", 1, Decimal("1.00")),),
        created_at=NOW,
        updated_at=NOW,
        created_by="u-1",
        encounter_id=encounter_id,
    )


def moved(event: Any, *claims: Claim) -> list[tuple[Status, Status]]:
    what = moving(event, NOW)
    assert what is not None
    return [(c.before.status, c.after.status) for c in changes_of(what, claims) if c.before is not None]


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("admission", {"submitted": "under_review"}),
        ("ADMISSION", {"submitted": "under_review"}),
        ("discharge", {"pending": "approved"}),
        ("treatment-initiated", {"submitted": "under_review", "under_review": "pending"}),
        ("TREATMENT_INITIATED", {"submitted": "under_review", "under_review": "pending"}),
    ],
)
def test_an_event_moves_claims_one_step_from_the_statuses_of_its_kind(
    events: Any, kind: str, steps: dict[str, str]
) -> None:
    assert moved(events(type=kind), *map(claim, Status)) == [(Status(a), Status(b)) for a, b in steps.items()]


@pytest.mark.parametrize("kind", ["note", "transfer", "medication-ordered", "admission.note", "DISCHARGED"])
def test_other_events_are_nothing_to_claims(events: Any, kind: str) -> None:
    event = events(type=kind)
    assert moving(event, NOW) is None
    assert record_history(None, Delivery(event, Position("t", 0, 0), NOW)).effects == ()


@pytest.mark.parametrize(
    ("event", "meant"),
    [
        ({}, ["e-1", "e-2", "stay-1", None]),
        ({"data": {"encounterId": "e-1"}}, ["e-1", None]),
        ({"stay": STAY}, ["stay-1", None]),
        ({"data": {"encounterId": "e-1"}, "stay": STAY}, ["e-1", "stay-1", None]),
        ({"stay": {**STAY, "status": "closed", "closedAt": NOW}}, ["e-1", "e-2", "stay-1", None]),
        ({"data": {"encounterId": None}}, ["e-1", "e-2", "stay-1", None]),
        ({"data": {"encounterId": ["e-1"]}}, ["e-1", "e-2", "stay-1", None]),
    ],
)
def test_a_treatment_moves_the_claims_of_its_encounter_where_both_name_one(
    events: Any, event: dict[str, Any], meant: list[str | None]
) -> None:
    what = moving(events(type="treatment-initiated", **event), NOW)
    assert what is not None
    claims = [claim(encounter_id=name) for name in ("e-1", "e-2", "stay-1", None)]
    assert [change.after.encounter_id for change in changes_of(what, claims)] == meant


@pytest.mark.parametrize("kind", ["admission", "discharge"])
def test_an_admission_or_a_discharge_moves_the_claims_of_all_encounters(events: Any, kind: str) -> None:
    status = Status.SUBMITTED if kind == "admission" else Status.PENDING
    event = events(type=kind, data={"encounterId": "e-1"}, stay=STAY)
    assert len(moved(event, claim(status, "e-1"), claim(status, "e-2"), claim(status))) == 3


def test_a_change_says_which_event_it_comes_from_and_when_it_was_handled(events: Any) -> None:
    event = events(type="DISCHARGE", eventId=UUID(int=7))
    (what,) = record_history(None, Delivery(event, Position("t", 0, 0), NOW)).effects
    at = NOW.replace(microsecond=123000)
    assert what.origin == Origin("system", "system", "event", f"discharge-{UUID(int=7)}", at)
    (change,) = changes_of(what, [claim(Status.PENDING)])
    assert (change.action, change.reason, change.after.status_reason) == ("status-changed", "discharge", "discharge")
    assert (change.after.version, change.after.updated_at, change.after.decided_at) == (4, at, at)
