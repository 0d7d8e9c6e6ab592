"""From due records to one transaction: who is a duplicate, what the handlers change, what goes out.

`plan` reads (patients' rows, inbox rows of suspects) and runs handlers; it writes nothing. Nobody looks first
and writes after: a lookup only saves a wasted transaction, and the unique index has the last word. When it
objects, the runtime suspects every event of the batch and plans again.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from time import perf_counter
from typing import Any, Generic, TypeVar

from carebus_common.consumer.change import Change, Delivery, Handler, PatientEvent
from carebus_common.consumer.errors import PauseConsumption
from carebus_common.consumer.lanes import Handled, Lane, PatientRow, Record
from carebus_common.consumer.store import InboxRow, PatientWrite, Store, Writes, message_document
from carebus_common.messages import Message

__all__ = ["Fate", "Plan", "Planner", "Settled", "Slow"]

E = TypeVar("E", bound=PatientEvent)

NO_ROW = PatientRow(position=None, parked=False, state=None)


class Fate(Enum):
    """What became of a record."""

    PROCESSED = auto()
    REDELIVERED = auto()  # this very record had its effect before: its messages go out again
    FORGOTTEN = auto()  # redelivered after the retention of its inbox row: it had its effect, its messages are gone
    DUPLICATE = auto()  # the same event at another offset: a sender's repetition
    CONFLICT = auto()  # the same eventId with another payload: the first one stands
    UNDECODABLE = auto()  # keyless and not an event: kept with the dead letters


@dataclass(frozen=True, slots=True)
class Settled(Generic[E]):
    """A record that needs nothing more than its messages published."""

    record: Record[E]
    fate: Fate
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Slow(Generic[E]):
    """A record whose handler is a coroutine, not yet run, with the row it was given."""

    record: Record[E]
    seen: PatientRow
    answer: Awaitable[Change]
    started: datetime


@dataclass(slots=True)
class Plan(Generic[E]):
    """One transaction, and per lane what it settles and what stands in the way of its next record."""

    writes: Writes = field(default_factory=Writes)
    settled: dict[Lane[E], list[Settled[E]]] = field(default_factory=dict)
    rows: dict[Lane[E], PatientRow] = field(default_factory=dict)
    failed: dict[Lane[E], Exception] = field(default_factory=dict)
    slow: dict[Lane[E], Slow[E]] = field(default_factory=dict)

    def close(self) -> None:
        """Drop coroutines that will not be run."""
        for slow in self.slow.values():
            if inspect.iscoroutine(slow.answer):
                slow.answer.close()


class Planner(Generic[E]):
    def __init__(
        self, store: Store, handler: Handler[E], *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._handler = handler
        self._clock = clock

    async def plan(self, due: Mapping[Lane[E], int], suspects: Set[str]) -> Plan[E]:
        """Plan the first `due[lane]` records of each lane. Raises `StoreAway`.

        `suspects` are inbox ids that may have had their effect already; they are looked up. A handler's
        exception ends its lane's part of the plan and is found in `failed`.
        """
        await self._read_rows(due)
        known = await self._store.inbox_rows(self._to_look_up(due, suspects))
        plan: Plan[E] = Plan()
        planned: set[str] = set()
        for lane, count in due.items():
            if not lane.revoked:
                self._plan_lane(plan, lane, count, known, planned)
        return plan

    async def _read_rows(self, due: Mapping[Lane[E], int]) -> None:
        unread = {
            f"{event.organization_id}/{event.patient_id}": lane
            for lane in due
            if lane.row is None and (event := lane.records[0].event) is not None
        }
        if not unread:
            return
        rows = await self._store.patient_rows(list(unread))
        for row_id, lane in unread.items():
            lane.row = rows.get(row_id, NO_ROW)

    @staticmethod
    def _to_look_up(due: Mapping[Lane[E], int], suspects: Set[str]) -> list[str]:
        ids: dict[str, None] = {}
        for lane, count in due.items():
            row = lane.row
            for record, _ in zip(lane.records, range(count), strict=False):
                if record.event is not None and (_behind(record, row) or record.inbox_id in suspects):
                    ids[record.inbox_id] = None
        return list(ids)

    def _plan_lane(
        self, plan: Plan[E], lane: Lane[E], count: int, known: Mapping[str, InboxRow], planned: set[str]
    ) -> None:
        read = row = lane.row or NO_ROW
        settled: list[Settled[E]] = []
        for record, _ in zip(lane.records, range(count), strict=False):
            if record.event is None:
                if record.key is not None:
                    plan.failed[lane] = record.problem or ValueError("undecodable")
                    break
                plan.writes.dead_letters.append(_dead_letter(record, "undecodable", self._clock()))
                settled.append(Settled(record, Fate.UNDECODABLE))
                continue
            if (before := known.get(record.inbox_id)) is not None:
                settled.append(self._settle_known(plan, record, before))
                continue
            if _behind(record, read):
                # Positions applied to a patient only ever grow.
                settled.append(Settled(record, Fate.FORGOTTEN))
                continue
            if record.inbox_id in planned:
                # A copy of an event of this very plan: the next one finds it in the inbox.
                break
            handled = self._handle(plan, lane, record, row)
            if handled is None:
                break
            change = handled.result
            if isinstance(change, Exception):
                plan.failed[lane] = change
                break
            planned.add(record.inbox_id)
            plan.writes.inbox.append(_inbox_document(record, record.event, change, handled))
            row = PatientRow(record.position, row.parked, row.state if change.state is None else dict(change.state))
            settled.append(Settled(record, Fate.PROCESSED, tuple(change.messages)))
        plan.settled[lane] = settled
        plan.rows[lane] = row
        if row is not read and (event := lane.records[0].event) is not None:
            plan.writes.patients.append(
                PatientWrite(
                    f"{event.organization_id}/{event.patient_id}", event.organization_id, event.patient_id, read, row
                )
            )

    def _handle(self, plan: Plan[E], lane: Lane[E], record: Record[E], row: PatientRow) -> Handled[E] | None:
        """What becomes of the record; None when its handler takes its time (then it is in `plan.slow`)."""
        handled, lane.handled = lane.handled, None
        # A change made from a row that has moved since is made again.
        if handled is not None and handled.record is record and handled.seen == row:
            return handled
        assert record.event is not None
        now = self._clock()
        started = perf_counter()
        result: Change | Exception
        try:
            answer = self._handler(row.state, Delivery(record.event, record.position, now, record.headers))
        except PauseConsumption:
            raise
        except Exception as error:
            result = error
        else:
            if not isinstance(answer, Change):
                plan.slow[lane] = Slow(record, row, answer, now)
                return None
            result = answer
        return Handled(record, row, result, now, (perf_counter() - started) * 1000)

    def _settle_known(self, plan: Plan[E], record: Record[E], before: InboxRow) -> Settled[E]:
        if before.position == record.position:
            return Settled(record, Fate.REDELIVERED, before.messages)
        if before.content_hash == record.content_hash:
            return Settled(record, Fate.DUPLICATE)
        plan.writes.dead_letters.append(_dead_letter(record, "conflict", self._clock()))
        return Settled(record, Fate.CONFLICT)


def _behind(record: Record[E], row: PatientRow | None) -> bool:
    """Whether the record is at or below the position applied to its patient: it had its effect before."""
    applied = row.position if row else None
    return (
        applied is not None
        and (record.position.topic, record.position.partition) == (applied.topic, applied.partition)
        and record.position.offset <= applied.offset
    )


def _inbox_document(record: Record[E], event: PatientEvent, change: Change, handled: Handled[E]) -> dict[str, Any]:
    position = record.position
    return {
        **change.row,
        "_id": record.inbox_id,
        "organizationId": event.organization_id,
        "eventId": str(event.event_id),
        "patientId": event.patient_id,
        "source": {"topic": position.topic, "partition": position.partition, "offset": position.offset},
        "contentHash": record.content_hash,
        "messages": [message_document(message) for message in change.messages],
        "processedAt": handled.started,
        "processingDurationMs": handled.duration_ms,
    }


def _dead_letter(record: Record[E], reason: str, now: datetime) -> dict[str, Any]:
    position, event = record.position, record.event
    return {
        "_id": f"{position.topic}/{position.partition}/{position.offset}",
        "reason": reason,
        "status": "open",
        "organizationId": event.organization_id if event else None,
        "eventId": str(event.event_id) if event else None,
        "patientId": event.patient_id if event else None,
        "source": {"topic": position.topic, "partition": position.partition, "offset": position.offset},
        "key": record.key,
        "value": record.value,
        "headers": [list(header) for header in record.headers],
        "timestamp": record.timestamp,
        "createdAt": now,
    }
