"""The plan of a parked patient's queue: its head is tried, redriven or discarded, and what follows drains in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

from carebus_common.consumer.change import Change, PatientEvent
from carebus_common.consumer.errors import DeadLetter
from carebus_common.consumer.handling import Handling
from carebus_common.consumer.lanes import Handled, Lane, Letter, Record
from carebus_common.consumer.letters import Tries
from carebus_common.consumer.plan import Fate, Plan, Settled
from carebus_common.consumer.plan_live import applied
from carebus_common.consumer.rows import Parked, ParkedPatient, PatientRow, new_token, queue_id, source_document
from carebus_common.consumer.store import InboxRow, LetterUpdate, Writes

__all__ = ["move_on", "outcome_document", "plan_queue"]

E = TypeVar("E", bound=PatientEvent)


def plan_queue(
    handling: Handling[E],
    plan: Plan[E],
    lane: Lane[E],
    count: int,
    known: Mapping[str, InboxRow],
    planned: set[str],
) -> None:
    """Plan the first `count` records of the lane's queue.

    What is applied stays in the queue until its messages are acknowledged; only then (see `parking`) does the head
    move, so that a crash in between finds it again and emits it again. A record that fails ends the part of the
    plan before it, unless it is the first one: the head alone fails, waits or becomes a dead letter.
    """
    row, patient = lane.row, lane.parked
    if row is None or row.parked is None or patient is None or row.parked.token != patient.token:
        plan.stale[lane] = timedelta(0)
        return
    read = row
    settled: list[Settled[E]] = []
    for record in islice(lane.queue, count):
        before = known.get(record.inbox_id) if record.event is not None else None
        had_its_effect = before is not None and before.position == record.position
        if record.letter is not None and record.letter.action == "discard" and not had_its_effect:
            row = _discard(handling, plan, lane, record, record.letter, row, row.parked, patient, known)
            settled.append(Settled(record, Fate.DISCARDED))
            break
        if before is not None:
            one = handling.settle_known(plan, record, before)
            settled.append(replace(one, lane=lane))
            _close(plan, record, one.fate.name.lower() if one.fate is not Fate.REDELIVERED else "processed", handling)
            continue
        if record.event is not None and record.inbox_id in planned:
            break
        handled = handling.handle(plan, lane, record, row)
        if handled is None:
            if settled and (slow := plan.slow.pop(lane)):
                slow.close()  # likewise
            break
        if isinstance(handled.result, Change):
            planned.add(record.inbox_id)
            one = handling.apply(plan, record, handled.result, handled)
            settled.append(replace(one, lane=lane))
            _close(plan, record, "processed", handling)
            row = applied(record, row, handled.result)
            continue
        if settled:
            break  # it is tried again as the head of the queue, once what is before it is out
        row, outcome = _fail(handling, plan, lane, record, row, patient, handled)
        if outcome is not None:
            settled.append(outcome)
        break
    plan.finish(lane, settled, read, row)


def _fail(
    handling: Handling[E],
    plan: Plan[E],
    lane: Lane[E],
    record: Record[E],
    row: PatientRow,
    patient: ParkedPatient,
    handled: Handled[E],
) -> tuple[PatientRow, Settled[E] | None]:
    """The head of the queue failed (again): it waits for its next try, or is a dead letter."""
    assert isinstance(handled.result, Exception)
    assert row.parked is not None
    error, now, policy = handled.result, handling.clock(), handling.subscription.retry
    first = patient.first_failed_at or now
    give_up_at = patient.give_up_at if patient.first_failed_at and patient.give_up_at else now + policy.deadline
    attempts = patient.attempts + 1
    due = None if isinstance(error, DeadLetter) else policy.next_try(attempts, give_up_at, now)
    letter, failure = handling.failed(record, lane.key[1], error, Tries(attempts, first, now), record.letter)
    token = new_token()
    parked = replace(row.parked, token=token)
    if due is not None:
        patient = replace(
            patient,
            status="retrying",
            token=token,
            attempts=attempts,
            due_at=due,
            first_failed_at=first,
            last_failed_at=now,
            give_up_at=give_up_at,
            failure=failure.document(),
        )
        _close(plan, record, "retrying", handling)
        settled = None
    else:
        plan.writes.dead_letters.append(letter)
        _close(plan, record, "dead-lettered", handling, letter["_id"])
        if record.row is not None:
            plan.writes.dequeued.append(queue_id(patient.row_id, record.row))
            parked = replace(parked, head=record.row + 1)
        patient = replace(
            patient,
            status="publishing",
            token=token,
            attempts=0,
            due_at=None,
            first_failed_at=None,
            last_failed_at=now,
            give_up_at=None,
            failure=failure.document(),
            dead_letter=letter["_id"],
        )
        settled = Settled(record, Fate.DEAD_LETTERED, handling.dlq_messages(letter), letter["_id"])
    plan.parked[lane] = patient
    plan.writes.parked.append(patient)
    return PatientRow(row.position, parked, row.state), settled


def _discard(
    handling: Handling[E],
    plan: Plan[E],
    lane: Lane[E],
    record: Record[E],
    letter: Letter,
    row: PatientRow,
    parked: Parked,
    patient: ParkedPatient,
    known: Mapping[str, InboxRow],
) -> PatientRow:
    """Close the dead letter at the head without its effect; an inbox row keeps copies of it from having one."""
    now, event = handling.clock(), record.event
    if event is not None and record.inbox_id not in known:
        plan.writes.inbox.append(
            {
                "_id": record.inbox_id,
                "organizationId": event.organization_id,
                "eventId": str(event.event_id),
                "source": source_document(record.position),
                "contentHash": record.content_hash,
                "messages": [],
                "discardedAt": now,
                "processedAt": now,
            }
        )
    fields = {"status": "discarded", "discard": letter.asked, "outcome": outcome_document("discarded", now)}
    plan.writes.letters.append(LetterUpdate(letter.id, "open", fields))
    row, plan.parked[lane] = move_on(plan.writes, row, parked, patient, now)
    return row


def move_on(
    writes: Writes, row: PatientRow, parked: Parked, patient: ParkedPatient, now: datetime
) -> tuple[PatientRow, ParkedPatient | None]:
    """The patient's rows once the head is out of the way: the next one's turn, or parked no more (None)."""
    if not parked.waiting:
        writes.unparked.append(patient.row_id)
        # All up to the newest one parked have been seen to, whatever became of them.
        return PatientRow(parked.tail, None, row.state), None
    following = replace(
        patient,
        status="retrying",
        token=new_token(),
        attempts=0,
        due_at=now,
        first_failed_at=None,
        give_up_at=None,
        dead_letter=None,
    )
    writes.parked.append(following)
    return PatientRow(row.position, replace(parked, token=following.token), row.state), following


def _close(
    plan: Plan[Any], record: Record[Any], status: str, handling: Handling[Any], letter: str | None = None
) -> None:
    """Enter the outcome of a redrive into its dead letter."""
    if record.letter is None:
        return
    now, asked = handling.clock(), record.letter.asked
    fields: dict[str, Any] = {"status": "redriven", "outcome": outcome_document(status, now, letter)}
    if asked is not None:
        fields["redrive"] = dict(asked)
    plan.writes.letters.append(LetterUpdate(record.letter.id, "redriven" if asked is None else "open", fields))


def outcome_document(status: str, now: datetime, letter: str | None = None) -> dict[str, Any]:
    return {"status": status, "at": now, "deadLetter": letter}
