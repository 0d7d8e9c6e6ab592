"""The ordered consumer: every event once, a patient's events in the order of the log, patients in parallel.

    records ──accept──▶ lanes ──plan──▶ one transaction ──▶ emitter ──▶ low-water mark ──▶ committed offset

Records wait in one lane a patient. A batch takes the lanes that are ready, plans them (`plan.py`), writes the
plan in one transaction (`store.py`), publishes the messages (`emitter.py`), and only then lets the partition's
committed offset pass. Up to `concurrent_batches` are under way, over different patients; a handler that is a
coroutine leaves its batch, and only its own patient waits for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic, perf_counter
from typing import Any, Generic, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition

from carebus_common import metrics
from carebus_common.consumer.change import PatientEvent
from carebus_common.consumer.emitter import Emitter, Publishes
from carebus_common.consumer.errors import PauseConsumption
from carebus_common.consumer.lanes import Handled, Lane, Lanes, Progress, Record
from carebus_common.consumer.offsets import Offsets
from carebus_common.consumer.plan import Fate, Plan, Planner, Settled, Slow
from carebus_common.consumer.records import Subscription, read_record
from carebus_common.consumer.store import BatchRefused, Moved, Store
from carebus_common.logging import get_logger, patient_hash

__all__ = ["Limits", "OrderedConsumer", "Status", "Subscription"]

E = TypeVar("E", bound=PatientEvent)
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one consumer."""

    batch_records: int = 4000
    # One batch is planned while another is written; two transactions at once conflict in the store more than
    # they gain.
    concurrent_batches: int = 2
    concurrent_transactions: int = 1
    in_flight_records: int = 20_000
    in_flight_bytes: int = 64 * 1024 * 1024
    commit_interval: timedelta = timedelta(milliseconds=200)
    # Well below the group's session timeout: heartbeats stop while a revocation is handled.
    drain_timeout: timedelta = timedelta(seconds=5)
    store_retry: timedelta = timedelta(milliseconds=500)
    # Ids of events that this process saw take effect: a hint that saves a transaction, never a decision.
    remembered_ids: int = 100_000
    idle_patients: int = 20_000


@dataclass(frozen=True, slots=True)
class Status:
    """What health and operations show: counts only."""

    connected: bool
    partitions: tuple[int, ...]
    in_flight: int
    stopped_patients: int
    store_away: bool
    broker_away: bool
    paused: bool


@dataclass(slots=True)
class _Recent:
    """The newest inbox ids, bounded."""

    size: int
    ids: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def add(self, inbox_id: str) -> None:
        self.ids[inbox_id] = None
        if len(self.ids) > self.size:
            self.ids.popitem(last=False)


class OrderedConsumer(ConsumerRebalanceListener, Generic[E]):  # type: ignore[misc]
    """One subscription's runtime; also the rebalance listener of its Kafka consumer.

    `run` works until cancelled; `accept` takes records and returns at once; `drain` finishes what is under way.
    """

    def __init__(
        self, subscription: Subscription[E], store: Store, publisher: Publishes, *, limits: Limits | None = None
    ) -> None:
        self.subscription = subscription
        self._limits = limits or Limits()
        self._store = store
        self._planner = Planner(store, subscription.handler)
        self._emitter: Emitter[E] = Emitter(publisher, self._published)
        self._lanes: Lanes[E] = Lanes(idle_limit=self._limits.idle_patients)
        self._offsets = Offsets(subscription.topic)
        self._recent = _Recent(self._limits.remembered_ids)
        self._slots = asyncio.Semaphore(self._limits.concurrent_batches)
        self._writing = asyncio.Semaphore(self._limits.concurrent_transactions)
        self._batches: set[asyncio.Task[None]] = set()
        self._slow: dict[asyncio.Task[None], Lane[E]] = {}
        self._wake = asyncio.Event()
        self._draining = False
        self._tasks: asyncio.TaskGroup | None = None
        self._in_flight_bytes = 0
        self._store_away = False
        self._paused = False
        self._broken: Exception | None = None
        group = subscription.group
        self._in_flight_gauge = metrics.IN_FLIGHT.labels(group)
        self._stopped_gauge = metrics.STOPPED_PATIENTS.labels(group)

    # --- records in ---------------------------------------------------------------------------------------------

    def attach(self, consumer: AIOKafkaConsumer) -> None:
        """Give the runtime the Kafka consumer that fetches for it, to pause it and to commit through it."""
        self._offsets.consumer = consumer

    def accept(self, records: Iterable[ConsumerRecord]) -> None:
        """Queue fetched records in the lanes of their patients."""
        try:
            for raw in records:
                if not self._offsets.take(raw.partition, raw.offset):
                    continue  # revoked between the fetch and now: its new owner gets it
                key, record = read_record(self.subscription, raw)
                self._in_flight_bytes += len(record.value or b"")
                self._lanes.append(key, record)
            self._throttle()
        except Exception as error:
            # Here FastStream would log it and fetch on, past these records; `run` raises it instead.
            self._broken = error
        self._wake.set()

    def _throttle(self) -> None:
        """Stop or go on fetching, by what is in flight; the group membership goes on either way."""
        consumer = self._offsets.consumer
        if consumer is None:
            return
        records, limits = self._offsets.in_flight, self._limits
        self._in_flight_gauge.set(records)
        fullness = max(records / limits.in_flight_records, self._in_flight_bytes / limits.in_flight_bytes)
        if fullness >= 1 or (self._paused and fullness >= 0.8):
            consumer.pause(*consumer.assignment())
            self._paused = True
        elif self._paused:
            consumer.resume(*consumer.paused())
            self._paused = False

    # --- batches ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled. Raises what should never happen; the process then ends and is restarted."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._emitter.run())
            tasks.create_task(self._commit_regularly())
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._broken is not None:
                    raise self._broken
                while self._may_begin():
                    await self._slots.acquire()
                    due = self._lanes.take(self._limits.batch_records) if self._may_begin() else {}
                    batch = tasks.create_task(self._run_batch(due))
                    self._batches.add(batch)
                    batch.add_done_callback(self._batches.discard)

    def _may_begin(self) -> bool:
        return self._lanes.any_ready and not self._draining

    async def _run_batch(self, due: Mapping[Lane[E], int]) -> None:
        try:
            await self._settle(due)
        finally:
            for lane in due:
                if lane.progress is Progress.BUSY:
                    self._lanes.release(lane)
            self._slots.release()
            self._wake.set()

    async def _settle(self, due: Mapping[Lane[E], int]) -> None:
        """Carry out the due records, whatever it takes, or until their partitions are revoked."""
        doubtful: set[str] = set()
        attempt = 0
        while due := {lane: n for lane, n in due.items() if not lane.revoked and lane.progress is Progress.BUSY}:
            plan: Plan[E] | None = None
            try:
                plan = await self._planner.plan(due, doubtful | self._suspects(due))
                if plan.writes:
                    await self._write(plan)
            except Moved:
                attempt += 1
                if attempt > 1:  # somebody else is at it too: let them get out of the way
                    await asyncio.sleep(min(0.01 * 2**attempt, 1))
            except PauseConsumption as error:
                if not self._store_away:
                    self._store_away = True
                    log.warning("consumption-waits", group=self.subscription.group, reason=str(error))
                await asyncio.sleep(self._limits.store_retry.total_seconds())
            except BatchRefused as error:
                await self._find_culprit(due, error)
                return
            else:
                self._store_away = False
                self._carry_on(plan)
                return
            if plan is not None:
                plan.close()
            for lane, count in due.items():
                lane.row = None
                doubtful.update(record.inbox_id for record, _ in zip(lane.records, range(count), strict=False))

    async def _write(self, plan: Plan[E]) -> None:
        group = self.subscription.group
        async with self._writing:
            started = perf_counter()
            await self._store.write(plan.writes)
        metrics.TRANSACTION_SECONDS.labels(group).observe(perf_counter() - started)
        metrics.TRANSACTION_EVENTS.labels(group).observe(len(plan.writes.inbox))

    def _suspects(self, due: Mapping[Lane[E], int]) -> set[str]:
        recent = self._recent.ids
        return {
            record.inbox_id
            for lane, count in due.items()
            for record, _ in zip(lane.records, range(count), strict=False)
            if record.inbox_id in recent
        }

    async def _find_culprit(self, due: Mapping[Lane[E], int], error: BatchRefused) -> None:
        """Split a batch that the store refuses until one event is alone with the blame."""
        lanes = list(due.items())
        if len(lanes) > 1:
            middle = len(lanes) // 2
            await self._settle(dict(lanes[:middle]))
            await self._settle(dict(lanes[middle:]))
            return
        lane, count = lanes[0]
        if count > 1:
            await self._settle({lane: count // 2})
            await self._settle({lane: count - count // 2})
        else:
            self._stop(lane, error)

    def _carry_on(self, plan: Plan[E]) -> None:
        """After the commit: let lanes go on, publish, and remember."""
        fates: Counter[tuple[Fate, str]] = Counter()
        for lane, settled in plan.settled.items():
            lane.row = plan.rows[lane]
            for one in settled:
                assert lane.records[0] is one.record
                lane.records.popleft()
                if one.fate is not Fate.UNDECODABLE:
                    self._recent.add(one.record.inbox_id)
                if one.fate is Fate.CONFLICT or one.fate is Fate.UNDECODABLE:
                    log.warning(
                        f"event-{one.fate.name.lower()}", group=self.subscription.group, source=_place(one.record)
                    )
                fates[one.fate, getattr(one.record.event, "type", "")] += 1
            if settled:
                lane.handled = None
            self._emitter.put(settled)
        self._count(fates)
        for lane, error in plan.failed.items():
            self._stop(lane, error)
        for lane, slow in plan.slow.items():
            self._start_slow(lane, slow)

    def _count(self, fates: Counter[tuple[Fate, str]]) -> None:
        group = self.subscription.group
        for (fate, event_type), count in fates.items():
            match fate:
                case Fate.DUPLICATE:
                    metrics.DUPLICATES.labels(group).inc(count)
                case Fate.CONFLICT:
                    metrics.CONFLICTS.labels(group).inc(count)
                case Fate.UNDECODABLE:
                    metrics.UNDECODABLE.labels(group).inc(count)
                case Fate.PROCESSED | Fate.REDELIVERED | Fate.FORGOTTEN:
                    kind = metrics.bounded_type(event_type)
                    metrics.EVENTS_PROCESSED.labels(group, kind, fate.name.lower()).inc(count)

    def _stop(self, lane: Lane[E], error: Exception) -> None:
        """Its first record cannot be applied: nothing of this patient moves, and the offset stays below it."""
        self._lanes.stop(lane)
        record = lane.records[0]
        metrics.STOPPED_PATIENTS.labels(self.subscription.group).inc()
        log.error(
            "patient-stopped",
            group=self.subscription.group,
            organization=lane.key[1],
            patient=patient_hash(lane.key[1], lane.key[2].decode(errors="replace")),
            event_id=str(record.event.event_id) if record.event else None,
            source=_place(record),
            # The message of an exception may quote the event; where it was raised does not.
            error=type(error).__name__,
            raised_at=_raised_at(error),
        )

    # --- slow handlers ------------------------------------------------------------------------------------------

    def _start_slow(self, lane: Lane[E], slow: Slow[E]) -> None:
        assert self._tasks is not None
        self._lanes.handling(lane)
        task = self._tasks.create_task(self._handle_slowly(lane, slow))
        self._slow[task] = lane
        task.add_done_callback(lambda ended: self._slow.pop(ended, None))

    async def _handle_slowly(self, lane: Lane[E], slow: Slow[E]) -> None:
        started = perf_counter()
        try:
            result = await slow.answer
        except PauseConsumption:
            await asyncio.sleep(self._limits.store_retry.total_seconds())
        except Exception as error:
            lane.handled = Handled(slow.record, slow.seen, error, slow.started, 0.0)
        else:
            duration_ms = (perf_counter() - started) * 1000
            lane.handled = Handled(slow.record, slow.seen, result, slow.started, duration_ms)
        self._lanes.release(lane)
        self._wake.set()

    # --- offsets ------------------------------------------------------------------------------------------------

    def _published(self, settled: Sequence[Settled[E]]) -> None:
        for one in settled:
            self._offsets.done(one.record.position.partition, one.record.position.offset)
            self._in_flight_bytes -= len(one.record.value or b"")
        self._throttle()

    async def committed(self, partition: int) -> int | None:
        """The group's committed offset, whoever owns the partition; None before the first commit.

        Raises KafkaError while the broker is away.
        """
        return await self._offsets.committed(partition)

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._limits.commit_interval.total_seconds())
            await self._offsets.commit()

    # --- rebalance and shutdown ---------------------------------------------------------------------------------

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._offsets.own(partition.partition for partition in assigned)
        self._paused = False
        self._throttle()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Finish what is in a transaction, drop what is not begun, commit: the new owner starts after this."""
        gone = {partition.partition for partition in revoked}
        lanes = set(self._lanes.revoke(gone))
        for task, lane in list(self._slow.items()):
            if lane in lanes:
                task.cancel()
        await self._finish_begun()
        await self._offsets.give_up(gone)
        self._in_flight_bytes -= sum(len(record.value or b"") for lane in lanes for record in lane.records)
        self._count_stopped()

    async def drain(self) -> None:
        """Begin nothing new, finish what is begun, publish it and commit the offsets; bounded in time."""
        self._draining = True
        for task in list(self._slow):
            task.cancel()
        await self._finish_begun()
        await self._offsets.commit()

    async def _finish_begun(self) -> None:
        deadline = monotonic() + self._limits.drain_timeout.total_seconds()
        if self._batches:
            await asyncio.wait(self._batches, timeout=deadline - monotonic())
        try:
            async with asyncio.timeout(max(0.0, deadline - monotonic())):
                await self._emitter.idle()
        except TimeoutError:
            log.warning("handing-over-unfinished", group=self.subscription.group)

    def _count_stopped(self) -> None:
        self._stopped_gauge.set(sum(1 for _ in self._lanes.stopped()))

    def status(self) -> Status:
        return Status(
            connected=self._offsets.consumer is not None,
            partitions=self._offsets.partitions,
            in_flight=self._offsets.in_flight,
            stopped_patients=sum(1 for _ in self._lanes.stopped()),
            store_away=self._store_away,
            broker_away=self._emitter.broker_away,
            paused=self._paused,
        )


def _place(record: Record[Any]) -> str:
    position = record.position
    return f"{position.topic}/{position.partition}/{position.offset}"


def _raised_at(error: Exception) -> str | None:
    trace = error.__traceback__
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
