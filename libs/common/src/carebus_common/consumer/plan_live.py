"""The plan of live records: applied, parked behind what failed before them, or failing themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

from carebus_common.consumer.change import Change, PatientEvent
from carebus_common.consumer.errors import DeadLetter
from carebus_common.consumer.handling import Handling
from carebus_common.consumer.lanes import Lane, Record, row_id_of
from carebus_common.consumer.letters import Tries, patient_of
from carebus_common.consumer.plan import Fate, Plan, Settled
from carebus_common.consumer.rows import NO_ROW, Parked, ParkedPatient, PatientRow, new_token, queue_id, source_document
from carebus_common.consumer.store import InboxRow

__all__ = ["applied", "behind", "plan_live"]

E = TypeVar("E", bound=PatientEvent)


def plan_live(
    handling: Handling[E],
    plan: Plan[E],
    lane: Lane[E],
    count: int,
    known: Mapping[str, InboxRow],
    planned: set[str],
) -> None:
    """Plan the first `count` records that the log brought for the lane."""
    read = row = lane.row or NO_ROW
    settled: list[Settled[E]] = []
    succeeded = 0
    seen_before = False
    for record in islice(lane.records, count):
        if record.key is None:
            settled.append(handling.dead_letter_apart(plan, record, "undecodable", Fate.UNDECODABLE))
            continue
        before = known.get(record.inbox_id) if record.event is not None else None
        copied = before is not None and before.position != record.position
        if row.parked is not None and row.parked.holds(record.position) and not copied:
            # Delivered again: the queue sees to it, even where it had its effect, so that what is before it in the
            # queue is published first.
            seen_before = True
            settled.append(Settled(record, Fate.FORGOTTEN))
            continue
        if before is not None:
            settled.append(handling.settle_known(plan, record, before))
            continue
        if behind(record, row):
            # Positions seen of a patient only ever grow: it is in the queue, among the dead letters, or applied.
            settled.append(Settled(record, Fate.FORGOTTEN))
            continue
        if row.parked is not None:
            row = _queued(plan, lane, record, row, row.parked, handling.clock())
            settled.append(Settled(record, Fate.PARKED))
            continue
        if record.event is not None and record.inbox_id in planned:
            # A copy of an event of this very plan: the next one finds it in the inbox.
            break
        handled = handling.handle(plan, lane, record, row)
        if handled is None:
            break
        if isinstance(handled.result, Change):
            planned.add(record.inbox_id)
            settled.append(handling.apply(plan, record, handled.result, handled))
            row = applied(record, row, handled.result)
            succeeded += 1
            continue
        plan.tried(False, succeeded)
        succeeded = 0
        plan.tried(True)
        row, outcome = _park(handling, plan, lane, record, row, handled.result)
        settled.append(outcome)
    plan.tried(False, succeeded)
    plan.finish(lane, settled, read, row)
    if seen_before:
        # An earlier owner parked it, or this one did and the answer was lost: nobody here may know of the patient.
        plan.stale[lane] = timedelta(0)


def _park(
    handling: Handling[E],
    plan: Plan[E],
    lane: Lane[E],
    record: Record[E],
    row: PatientRow,
    error: Exception,
) -> tuple[PatientRow, Settled[E]]:
    """A live record failed: its patient is parked, and it is the head of the queue or a dead letter."""
    now, policy = handling.clock(), handling.subscription.retry
    give_up_at = now + policy.deadline
    due = None if isinstance(error, DeadLetter) else policy.next_try(1, give_up_at, now)
    letter, failure = handling.failed(record, lane.key[1], error, Tries(1, now, now))
    token = new_token()
    patient = ParkedPatient(
        row_id=row_id_of(lane.key),
        organization_id=lane.key[1],
        patient_id=patient_of(record, lane.key[1]) or "",
        topic=record.position.topic,
        partition=record.position.partition,
        status="publishing" if due is None else "retrying",
        since=now,
        token=token,
        attempts=0 if due is None else 1,
        due_at=due,
        first_failed_at=now,
        last_failed_at=now,
        give_up_at=give_up_at,
        failure=failure.document(),
        dead_letter=letter["_id"] if due is None else None,
    )
    plan.parked[lane] = patient
    plan.writes.parked.append(patient)
    parked = Parked(0, 0, record.position, record.position, token)
    if due is None:
        plan.writes.dead_letters.append(letter)
        settled = Settled(record, Fate.DEAD_LETTERED, handling.dlq_messages(letter), letter["_id"])
        return PatientRow(row.position, parked, row.state), settled
    return _queued(plan, lane, record, row, parked, now), Settled(record, Fate.PARKED)


def applied(record: Record[Any], row: PatientRow, change: Change) -> PatientRow:
    """The patient's row once the record has had its effect."""
    return PatientRow(record.position, row.parked, row.state if change.state is None else dict(change.state))


def _queued(
    plan: Plan[E], lane: Lane[E], record: Record[E], row: PatientRow, parked: Parked, now: datetime
) -> PatientRow:
    """The patient's row with the record at the end of the queue."""
    event = record.event
    row_id = row_id_of(lane.key)
    plan.writes.queued.append(
        {
            "_id": queue_id(row_id, parked.next),
            "organizationId": lane.key[1],
            "patientId": patient_of(record, lane.key[1]),
            "eventId": str(event.event_id) if event else None,
            "type": getattr(event, "type", None),
            "source": source_document(record.position),
            "key": record.key,
            "value": record.value,
            "headers": [list(header) for header in record.headers],
            "timestamp": record.timestamp,
            "parkedAt": now,
        }
    )
    return PatientRow(row.position, replace(parked, next=parked.next + 1, tail=record.position), row.state)


def behind(record: Record[E], row: PatientRow) -> bool:
    """Whether the record is at or below the position seen of its patient: it was applied or parked before."""
    seen = row.received
    return (
        seen is not None
        and (record.position.topic, record.position.partition) == (seen.topic, seen.partition)
        and record.position.offset <= seen.offset
    )
