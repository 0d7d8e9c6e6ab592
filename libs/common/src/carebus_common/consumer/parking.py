"""Parked patients, as the owner of their partition works on them: retries when due, redrives and discards when asked.

    due, or asked for ──load──▶ the lane's queue ──plan_queue──▶ messages out ──settle──▶ the next one, or unparked

A parked patient's queue is in the store. What is due of it is loaded into the patient's lane, where it goes before
the live records and takes the same way as they do. Its rows are deleted, and the head of the queue moves, only after
the messages are acknowledged; a crash before that finds the row again, and its inbox row, and emits them again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from carebus_common import metrics
from carebus_common.cancellation import cancelled
from carebus_common.consumer.change import PatientEvent
from carebus_common.consumer.errors import StoreAway
from carebus_common.consumer.lanes import Lane, Lanes, Letter, Progress, Record, row_id_of
from carebus_common.consumer.letters import letter_message
from carebus_common.consumer.limits import Recent
from carebus_common.consumer.parked_store import ParkedStore, Request
from carebus_common.consumer.plan import Fate, Settled
from carebus_common.consumer.plan_queue import move_on
from carebus_common.consumer.records import Subscription, lane_of, read_letter, read_queued
from carebus_common.consumer.rows import ParkedPatient, PatientRow, queue_id
from carebus_common.consumer.store import BatchRefused, Moved, PatientWrite, Store, Writes
from carebus_common.failpoints import failpoint
from carebus_common.logging import get_logger

__all__ = ["Parking"]

E = TypeVar("E", bound=PatientEvent)
Document = Mapping[str, Any]
log = get_logger(__name__)

# Patients whose queues are in memory at once, rows loaded of one queue and of all at a time: bounds on memory.
_AT_WORK = 4000
_ROWS_OF_ONE = 200
_ROWS_AT_ONCE = 4000
_REQUESTS = 16
_LETTERS_KNOWN = 10_000


@dataclass(slots=True)
class _Asked:
    """A request under way: letters not looked at yet, and patients whose letter is being worked on."""

    request: Request
    waiting: deque[str]
    at_work: set[str] = field(default_factory=set)


class Parking(Generic[E]):
    """`emit` publishes, `wake` tells the runtime that lanes are ready."""

    def __init__(
        self,
        subscription: Subscription[E],
        store: Store,
        parked: ParkedStore,
        lanes: Lanes[E],
        *,
        emit: Callable[[Sequence[Settled[E]]], None],
        wake: Callable[[], None],
        clock: Callable[[], datetime],
        writing: asyncio.Semaphore,
    ) -> None:
        self._subscription = subscription
        self._store = store
        self._parked = parked
        self._lanes = lanes
        self._emit = emit
        self._wake_runtime = wake
        self._clock = clock
        self._writing = writing
        self._partitions: set[int] = set()
        self._unread: set[int] = set()
        self._due: list[tuple[datetime, str, int]] = []
        self._at_work: dict[str, Lane[E]] = {}
        self._asked: dict[str, _Asked] = {}
        self._done_requests: list[str] = []
        self._emitted: list[Lane[E]] = []
        self._published: list[tuple[str, str | None]] = []
        # Letters that this process publishes: what it reads of them may be older than that.
        self._publishing = Recent(_LETTERS_KNOWN)
        self._settle_wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    # --- told by the runtime ------------------------------------------------------------------------------------

    def assigned(self, partitions: Iterable[int]) -> None:
        new = set(partitions)
        self._partitions |= new
        self._unread |= new

    def revoked(self, partitions: Iterable[int]) -> None:
        gone = set(partitions)
        self._partitions -= gone
        self._unread -= gone
        self._due = [entry for entry in self._due if entry[2] not in gone]
        heapq.heapify(self._due)
        self._asked = {name: asked for name, asked in self._asked.items() if asked.request.partition not in gone}
        self._at_work = {row_id: lane for row_id, lane in self._at_work.items() if not lane.revoked}

    def moved(self, lane: Lane[E], patient: ParkedPatient | None) -> None:
        """A plan was committed that changed the head of the lane's queue; `patient` is what is stored now."""
        self._leave(lane)
        if patient is None:
            return
        if patient.status == "publishing" and patient.dead_letter is not None:
            self._publishing.add(patient.dead_letter)
        elif patient.due_at is not None:
            self._schedule(patient.due_at, patient.row_id, patient.partition)

    def stale(self, lane: Lane[E], after: timedelta = timedelta(0)) -> None:
        """The lane's queue is not what it was when it was loaded, or it is too early for it: look again, also at what
        was asked for."""
        row_id = row_id_of(lane.key)
        for record in lane.queue:
            for asked in self._asked.values():
                if record.letter is not None and row_id in asked.at_work:
                    asked.waiting.append(record.letter.id)
        self._leave(lane)
        self._schedule(self._clock() + after, row_id_of(lane.key), lane.key[0])

    def emitted(self, lane: Lane[E]) -> None:
        """All that was applied of the lane's queue is out."""
        self._emitted.append(lane)
        self._settled.clear()
        self._settle_wake.set()

    def letter_published(self, letter: str, record: Record[E], *, blocking: bool) -> None:
        """The broker has the dead letter."""
        failpoint("before-dlq-ack")
        self._published.append((letter, row_id_of(lane_of(record)) if blocking else None))
        self._settled.clear()
        self._settle_wake.set()

    async def idle(self) -> None:
        """Wait until all that was emitted is settled in the store."""
        await self._settled.wait()

    # --- what is due and what was asked for ---------------------------------------------------------------------

    def next_due(self) -> datetime | None:
        return self._due[0][0] if self._due else None

    async def look(self) -> None:
        """Learn of newly owned partitions' patients and of new requests. Raises `StoreAway`."""
        if self._unread:
            new = set(self._unread)
            for patient in await self._parked.active(self._subscription.topic, new):
                self._schedule(patient.due_at or self._clock(), patient.row_id, patient.partition)
            self._unread -= new
        if self._done_requests:
            done, self._done_requests = self._done_requests, []
            await self._parked.requests_done(done)
        if len(self._asked) < _REQUESTS and self._partitions:
            for request in await self._parked.requests(self._subscription.topic, self._partitions, _REQUESTS):
                if request.id not in self._asked and request.partition in self._partitions:
                    self._asked[request.id] = _Asked(request, deque(request.letter_ids))

    async def begin(self) -> None:
        """Load what is due or asked for into its lanes, as much as there is room for. Raises `StoreAway`."""
        now = self._clock()
        room = _AT_WORK - len(self._at_work)
        due: dict[str, int] = {}
        while self._due and self._due[0][0] <= now and len(due) < room:
            _, row_id, partition = heapq.heappop(self._due)
            if partition in self._partitions and row_id not in self._at_work:
                due[row_id] = partition
        try:
            if due:
                await self._begin_due(list(due), now)
        except StoreAway:
            for row_id, partition in due.items():
                self._schedule(now, row_id, partition)
            raise
        for asked in list(self._asked.values()):
            room = _AT_WORK - len(self._at_work)
            ids = [asked.waiting[i] for i in range(min(room, len(asked.waiting)))]
            if ids:
                await self._begin_asked(asked, ids)
                for _ in ids:
                    asked.waiting.popleft()
            self._close_if_done(asked)

    async def _begin_due(self, row_ids: list[str], now: datetime) -> None:
        patients = await self._parked.parked_patients(row_ids)
        letters = await self._parked.letters([p.dead_letter for p in patients.values() if p.dead_letter])
        in_queue = [p.row_id for p in patients.values() if p.status == "retrying" and not p.dead_letter]
        rows = await self._store.patient_rows(in_queue)
        wanted = {row_id: _numbers(rows.get(row_id)) for row_id in in_queue}
        left = _ROWS_AT_ONCE
        for row_id, numbers in wanted.items():
            wanted[row_id] = numbers[: max(1, left)]
            left -= len(numbers)
        queued = await self._parked.queue_rows([queue_id(i, n) for i, numbers in wanted.items() for n in numbers])
        for row_id, patient in patients.items():
            if patient.partition not in self._partitions:
                continue
            letter = letters.get(patient.dead_letter or "")
            if patient.due_at is not None and patient.due_at > now:
                self._schedule(patient.due_at, row_id, patient.partition)
            elif patient.status == "publishing" and letter is not None:
                if letter["_id"] not in self._publishing.ids:
                    self._publish_again(letter)
            elif patient.status == "retrying" and letter is not None:
                self._load(patient, [self._read_letter(letter)])
            elif patient.status == "retrying" and patient.dead_letter is None:
                stored = [(n, queued.get(queue_id(row_id, n))) for n in wanted[row_id]]
                records = [read_queued(self._subscription, row, n) for n, row in stored if row is not None]
                if records:
                    self._load(patient, records)

    async def _begin_asked(self, asked: _Asked, ids: list[str]) -> None:
        request = asked.request
        letters = await self._parked.letters(ids)
        if request.action == "discard":
            apart = [name for name, letter in letters.items() if not letter["blocking"] and letter["status"] == "open"]
            if apart:
                await self._parked.discard_unblocking(apart, request.asked, self._clock())
        # A patient may have several here, of which at most one is at the head.
        blocking = [
            (f"{letter['organizationId'] or ''}/{letter['patientId']}", letter)
            for letter in letters.values()
            if letter["blocking"]
        ]
        patients = await self._parked.parked_patients([row_id for row_id, _ in blocking])
        for row_id, letter in blocking:
            patient = patients.get(row_id)
            # Only the head of a queue can be moved; one that is not was moved before: a second click.
            if patient is None or patient.dead_letter != letter["_id"] or row_id in self._at_work:
                continue
            # It is being redriven already; what was read of the letter may be older than that. One that was redriven
            # and is no retry had its effect and was not settled any more.
            if patient.status == "retrying":
                continue
            record = self._read_letter(letter, request)
            if self._load(patient, [record]):
                asked.at_work.add(row_id)

    def _read_letter(self, letter: Document, request: Request | None = None) -> Record[E]:
        """Its record: as `request` asks, or else to be tried again."""
        action = request.action if request is not None else "redrive"
        asked = request.asked if request is not None else None
        return read_letter(self._subscription, letter, Letter(letter["_id"], letter["redrives"], action, asked))

    def _load(self, patient: ParkedPatient, records: list[Record[E]]) -> bool:
        lane = self._lanes.of((patient.partition, patient.organization_id, records[0].key or b""))
        if patient.partition not in self._partitions or lane.parked is not None or lane.progress is Progress.STOPPED:
            return False
        lane.parked = patient
        lane.queue.extend(records)
        self._at_work[patient.row_id] = lane
        self._lanes.ready(lane)
        self._wake_runtime()
        return True

    def _publish_again(self, letter: Document) -> None:
        """A process ended between the commit and the broker's acknowledgement."""
        record = self._read_letter(letter)
        topic = self._subscription.dead_letter_topic
        messages = () if topic is None else (letter_message(topic, self._subscription.group, letter),)
        self._publishing.add(letter["_id"])
        self._emit([Settled(record, Fate.DEAD_LETTERED, messages, letter["_id"])])

    def _schedule(self, due: datetime, row_id: str, partition: int) -> None:
        heapq.heappush(self._due, (due, row_id, partition))

    def _leave(self, lane: Lane[E]) -> None:
        """What was loaded of the lane's queue is done with."""
        lane.drop_queue()
        row_id = row_id_of(lane.key)
        if self._at_work.pop(row_id, None) is None:
            return
        for asked in list(self._asked.values()):
            if row_id in asked.at_work:
                asked.at_work.discard(row_id)
                self._close_if_done(asked)

    def _close_if_done(self, asked: _Asked) -> None:
        if not asked.waiting and not asked.at_work and asked.request.id in self._asked:
            del self._asked[asked.request.id]
            self._done_requests.append(asked.request.id)

    # --- after the emission -------------------------------------------------------------------------------------

    async def run_settling(self) -> None:
        """Move queues on whose messages are out, until cancelled; waits for a store that is away."""
        while not cancelled():
            await self._settle_wake.wait()
            self._settle_wake.clear()
            while self._published or self._emitted:
                published, self._published = self._published, []
                lanes, self._emitted = self._emitted, []
                try:
                    if published:
                        await self._parked.letters_published(published, self._clock())
                        published = []
                        failpoint("after-dlq-ack")
                    await self._settle([lane for lane in lanes if not lane.revoked])
                except StoreAway:
                    self._published = published + self._published
                    self._emitted = lanes + self._emitted
                    await asyncio.sleep(0.5)
                    if cancelled():
                        raise asyncio.CancelledError from None
            self._settled.set()

    async def _settle(self, lanes: list[Lane[E]]) -> None:
        if not lanes:
            return
        now, writes = self._clock(), Writes()
        after: list[tuple[Lane[E], PatientRow, ParkedPatient | None]] = []
        for lane in lanes:
            read, patient = lane.row, lane.parked
            if read is None or read.parked is None or patient is None:
                self._look_again(lane)
                continue
            numbers = lane.emitted_rows
            parked = replace(read.parked, head=numbers[-1] + 1) if numbers else read.parked
            writes.dequeued.extend(queue_id(patient.row_id, number) for number in numbers)
            row, following = move_on(writes, read, parked, patient, now)
            writes.patients.append(PatientWrite(patient.row_id, patient.organization_id, patient.patient_id, read, row))
            after.append((lane, row, following))
        try:
            failpoint("before-unpark")
            if writes:
                # In turn with the batches: two transactions at once conflict in the store more than they gain.
                async with self._writing:
                    await self._store.write(writes)
            failpoint("after-unpark")
        except (Moved, BatchRefused):
            if len(after) == 1:
                self._look_again(after[0][0])
                return
            for lane, *_ in after:
                await self._settle([lane])
            return
        for lane, row, following in after:
            self._settled_lane(lane, row, following)
        self._wake_runtime()

    def _settled_lane(self, lane: Lane[E], row: PatientRow, following: ParkedPatient | None) -> None:
        lane.row = row
        lane.emitted_rows.clear()
        if following is not None and lane.queue:
            lane.parked = following
        else:
            self.moved(lane, following)
        self._lanes.release(lane)

    def _look_again(self, lane: Lane[E]) -> None:
        """Somebody else was at this patient: what is known here is old."""
        lane.row = None
        lane.emitted_rows.clear()
        self.stale(lane)
        self._lanes.release(lane)
        self._wake_runtime()

    async def count(self) -> tuple[int, int]:
        """Parked patients and parked events in the store. Raises `StoreAway`."""
        patients, events = await self._parked.counts()
        metrics.PARKED_PATIENTS.labels(self._subscription.group).set(patients)
        metrics.PARKED_EVENTS.labels(self._subscription.group).set(events)
        return patients, events


def _numbers(row: PatientRow | None) -> list[int]:
    """The numbers of the rows at the head of a patient's queue."""
    if row is None or row.parked is None:
        return []
    return list(range(row.parked.head, min(row.parked.next, row.parked.head + _ROWS_OF_ONE)))
