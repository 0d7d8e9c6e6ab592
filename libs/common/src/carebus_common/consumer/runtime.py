"""The ordered consumer: every event once, a patient's events in the order of the log, patients in parallel.

    records ──accept──▶ lanes ──plan──▶ one transaction ──▶ emitter ──▶ low-water mark ──▶ committed offset
                          ▲                                    │
                          └──────── parking: due, asked for ◀──┘

Records wait in one lane a patient. A batch takes the lanes that are ready, plans them (`planner.py`), writes the
plan in one transaction (`store.py`), publishes the messages (`emitter.py`), and only then lets the partition's
committed offset pass. Up to `concurrent_batches` are under way, over different patients; a handler that is a
coroutine leaves its batch, and only its own patient waits for it. A patient whose event fails is parked (`parking.py`):
its events wait in the store, and everybody else flows. Too many failures stop the consumer (`control.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from time import perf_counter
from typing import Generic, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition

from carebus_common import metrics
from carebus_common.cancellation import cancelled
from carebus_common.consumer.accounting import account
from carebus_common.consumer.change import PatientEvent
from carebus_common.consumer.control import Control
from carebus_common.consumer.emitter import Emitter, Publishes
from carebus_common.consumer.errors import PauseConsumption
from carebus_common.consumer.handling import Handling, utc_now
from carebus_common.consumer.lanes import Handled, Lane, Lanes
from carebus_common.consumer.letters import letter_id
from carebus_common.consumer.limits import Limits, Recent, Status
from carebus_common.consumer.offsets import Offsets
from carebus_common.consumer.parked_store import ParkedStore
from carebus_common.consumer.parking import Parking
from carebus_common.consumer.plan import Fate, Plan, Settled
from carebus_common.consumer.planner import Planner
from carebus_common.consumer.recorder import Recorder
from carebus_common.consumer.records import Subscription, read_record
from carebus_common.consumer.rows import NO_ROW
from carebus_common.consumer.slow import SlowHandlers
from carebus_common.consumer.store import BatchRefused, Moved, Store
from carebus_common.failpoints import failpoint
from carebus_common.logging import get_logger, patient_hash

__all__ = ["Limits", "OrderedConsumer", "Status", "Subscription"]

E = TypeVar("E", bound=PatientEvent)
log = get_logger(__name__)


class OrderedConsumer(ConsumerRebalanceListener, Generic[E]):  # type: ignore[misc]
    """One subscription's runtime; also the rebalance listener of its Kafka consumer.

    `run` works until cancelled; `accept` takes records and returns at once; `drain` finishes what is under way.
    """

    def __init__(
        self,
        subscription: Subscription[E],
        store: Store,
        publisher: Publishes,
        *,
        limits: Limits | None = None,
        recorder: Recorder | None = None,
        parked: ParkedStore | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.subscription = subscription
        self._limits = limits or Limits()
        self._store = store
        self._recorder = recorder or Recorder(None, subscription.group)
        self._lanes: Lanes[E] = Lanes(idle_limit=self._limits.idle_patients)
        self._emitter: Emitter[E] = Emitter(publisher, self._published)
        parked = parked or ParkedStore(store)
        self._clock = clock
        self._control = Control(
            parked, subscription.group, subscription.topic, subscription.failure_limits, self._recorder
        )
        self._wake = asyncio.Event()
        self._writing = asyncio.Semaphore(self._limits.concurrent_transactions)
        emit, wake = self._emitter.put, self._wake.set
        self._parking: Parking[E] = Parking(
            subscription, store, parked, self._lanes, emit=emit, wake=wake, clock=clock, writing=self._writing
        )
        self._parking_wake = asyncio.Event()
        handling = Handling(subscription, interrupted=self._control.interrupted, recorder=self._recorder, clock=clock)
        self._offsets = Offsets(subscription.topic)
        self._planner = Planner(store, handling, window=lambda: self._control.window, reached=self._offsets.reached)
        self._recent = Recent(self._limits.remembered_ids)
        self._slots = asyncio.Semaphore(self._limits.concurrent_batches)
        self._batches: set[asyncio.Task[None]] = set()
        self._slow: SlowHandlers[E] = SlowHandlers(
            self._recorder,
            self._control.interrupted,
            deadline=subscription.handler_deadline,
            pause=self._limits.store_retry,
            ended=self._let_go,
        )
        self._draining = False
        self._tasks: asyncio.TaskGroup | None = None
        self._in_flight_bytes = 0
        self._store_away = False
        self._paused = False
        self._parked = (0, 0)
        self._broken: Exception | None = None
        self._in_flight_gauge = metrics.IN_FLIGHT.labels(subscription.group)
        self._stopped_gauge = metrics.STOPPED_PATIENTS.labels(subscription.group)

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
        """Stop or go on fetching, by what is in flight and what is stopped; the group membership goes on either way."""
        consumer = self._offsets.consumer
        if consumer is None:
            return
        records, limits = self._offsets.in_flight, self._limits
        self._in_flight_gauge.set(records)
        fullness = max(records / limits.in_flight_records, self._in_flight_bytes / limits.in_flight_bytes)
        if fullness >= 1 or self._held_up or (self._paused and fullness >= 0.8):
            consumer.pause(*consumer.assignment())
            self._paused = True
        elif self._paused:
            consumer.resume(*consumer.paused())
            self._paused = False

    @property
    def _held_up(self) -> bool:
        return self._control.stopped is not None or self._parked_full

    @property
    def _parked_full(self) -> bool:
        return self._parked[1] >= self._limits.parked_events

    # --- batches ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled. Raises what should never happen; the process then ends and is restarted."""
        self._recorder.watch(self.subscription.handler_deadline)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._emitter.run())
                tasks.create_task(self._commit_regularly())
                tasks.create_task(self._parking.run_settling())
                tasks.create_task(self._look_regularly())
                while not cancelled():
                    await self._wake.wait()
                    self._wake.clear()
                    if self._broken is not None:
                        raise self._broken
                    await self._begin_batches(tasks)
        finally:
            self._recorder.close()

    async def _begin_batches(self, tasks: asyncio.TaskGroup) -> None:
        while self._may_begin():
            await self._slots.acquire()
            due: dict[Lane[E], int] = {}
            if self._may_begin():
                due = self._lanes.take(self._limits.batch_records, queues_only=self._parked_full)
            if not due:
                self._slots.release()
                return
            batch = tasks.create_task(self._run_batch(due))
            for lane in due:
                lane.batch = batch
            self._batches.add(batch)
            batch.add_done_callback(self._batches.discard)

    def _may_begin(self) -> bool:
        return self._lanes.any_ready and self._control.ready and self._control.stopped is None and not self._draining

    async def _run_batch(self, due: Mapping[Lane[E], int]) -> None:
        try:
            await self._settle(due)
        finally:
            for lane in due:
                if lane.held_by(asyncio.current_task()):
                    self._lanes.release(lane)
            self._slots.release()
            self._wake.set()
            if self._parking.next_due() is not None:
                self._parking_wake.set()

    async def _settle(self, due: Mapping[Lane[E], int]) -> None:
        """Carry out the due records, whatever it takes, or until their partitions are revoked."""
        doubtful: set[str] = set()
        attempt = 0
        while due := {lane: n for lane, n in due.items() if lane.held_by(asyncio.current_task())}:
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
                await self._wait_for(error)
            except BatchRefused as error:
                if plan is not None:
                    plan.close()
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
                doubtful.update(record.inbox_id for record, _ in zip(lane.front, range(count), strict=False))
            if attempt >= self._limits.tries_together:
                await self._set_apart(due)
                return

    async def _set_apart(self, due: Mapping[Lane[E], int]) -> None:
        """Some of these patients' rows are held by somebody else: find about which, and let all others go on.

        After a kill it is the transaction of a dead owner, which the store ends only after a minute.
        """
        lanes = list(due.items())
        if len(lanes) > self._limits.held_together:
            middle = len(lanes) // 2
            await self._settle(dict(lanes[:middle]))
            await self._settle(dict(lanes[middle:]))
            return
        for lane, _ in lanes:
            self._lanes.settling(lane)
            asyncio.get_running_loop().call_later(self._limits.held_retry.total_seconds(), self._let_go, lane)

    def _let_go(self, lane: Lane[E]) -> None:
        self._lanes.release(lane)
        self._wake.set()

    async def _wait_for(self, error: PauseConsumption) -> None:
        if not self._store_away:
            self._store_away = True
            log.warning("consumption-waits", group=self.subscription.group, reason=str(error))
        await asyncio.sleep(self._limits.store_retry.total_seconds())
        if cancelled():
            raise asyncio.CancelledError

    async def _write(self, plan: Plan[E]) -> None:
        async with self._writing:
            started = perf_counter()
            failpoint("before-transaction")
            await self._store.write(plan.writes)
            failpoint("after-transaction")
        metrics.TRANSACTION_SECONDS.labels(self.subscription.group).observe(perf_counter() - started)
        metrics.TRANSACTION_EVENTS.labels(self.subscription.group).observe(len(plan.writes.inbox))

    def _suspects(self, due: Mapping[Lane[E], int]) -> set[str]:
        return {
            record.inbox_id
            for lane, count in due.items()
            for record, _ in zip(lane.front, range(count), strict=False)
            if record.inbox_id in self._recent.ids
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
            return
        record = lane.front[0]
        if record.refused:
            self._stop(lane, error)  # the store refuses even that it failed
            return
        record.refused = True
        lane.handled = Handled(record, lane.row or NO_ROW, error, self._clock(), 0.0)
        await self._settle({lane: 1})

    def _carry_on(self, plan: Plan[E]) -> None:
        """After the commit: let lanes go on, publish, and remember."""
        if self._control.tried(plan.runs):
            self._parking_wake.set()
        for lane, settled in plan.settled.items():
            lane.row = plan.rows[lane]
            if settled:
                self._take_off(lane, settled)
                self._emitter.put(settled)
        account(self.subscription.group, plan)
        for lane, patient in plan.parked.items():
            self._parking.moved(lane, patient)
        for lane, after in plan.stale.items():
            lane.row = None
            self._parking.stale(lane, after)
        for lane, slow in plan.slow.items():
            assert self._tasks is not None
            self._lanes.handling(lane)
            self._slow.start(self._tasks, lane, slow)
        if self._held_up:
            self._throttle()

    def _take_off(self, lane: Lane[E], settled: Sequence[Settled[E]]) -> None:
        """Take what is settled off its lane, and remember it."""
        front = lane.front
        for one in settled:
            assert front[0] is one.record
            front.popleft()
            if one.fate is not Fate.UNDECODABLE:
                self._recent.add(one.record.inbox_id)
            if one.lane is not None:
                lane.emitting += 1
                if one.record.row is not None:
                    lane.emitted_rows.append(one.record.row)
        lane.handled = None
        if lane.emitting:
            self._lanes.settling(lane)
        if self._control.interrupted:
            for one in settled:
                self._control.handled(letter_id(one.record.position))

    def _stop(self, lane: Lane[E], error: Exception) -> None:
        """Its first record cannot be applied: nothing of this patient moves, and the offset stays below it."""
        self._lanes.stop(lane)
        record = lane.front[0]
        self._count_stopped()
        log.error(
            "patient-stopped",
            group=self.subscription.group,
            organization=lane.key[1],
            patient=patient_hash(lane.key[1], lane.key[2].decode(errors="backslashreplace")),
            source=letter_id(record.position),
            # The message of an exception may quote the event; where it was raised does not.
            error=type(error).__name__,
        )

    # --- offsets ------------------------------------------------------------------------------------------------

    def _published(self, settled: Sequence[Settled[E]]) -> None:
        for one in settled:
            record = one.record
            if record.live:
                self._offsets.done(record.position.partition, record.position.offset)
                self._in_flight_bytes -= len(record.value or b"")
            if one.letter is not None:
                self._parking.letter_published(one.letter, record, blocking=one.fate is Fate.DEAD_LETTERED)
            if one.lane is not None:
                one.lane.emitting -= 1
                if not one.lane.emitting:
                    self._parking.emitted(one.lane)
        self._throttle()

    async def committed(self, partition: int) -> int | None:
        """The group's committed offset, whoever owns the partition; None before the first commit.

        Raises KafkaError while the broker is away.
        """
        return await self._offsets.committed(partition)

    async def _commit_regularly(self) -> None:
        while not cancelled():
            await asyncio.sleep(self._limits.commit_interval.total_seconds())
            await self._offsets.commit()

    # --- parked patients and the stop -----------------------------------------------------------------------------

    async def _look_regularly(self) -> None:
        """Begin what is due, and learn from the store what was asked for, what is stopped and how much is parked."""
        look, count = self._limits.look_interval.total_seconds(), self._limits.count_interval.total_seconds()
        monotonic = asyncio.get_running_loop().time
        looked = counted = -count
        while not cancelled():
            self._parking_wake.clear()
            try:
                if monotonic() - looked >= look:
                    await self._look()
                    # A batch that waits knows better.
                    self._store_away, looked = self._store_away and bool(self._batches), monotonic()
                elif self._control.unsaved:
                    await self._control.sync()
                if monotonic() - counted >= count:
                    await self._control.sync_interrupted()
                    self._parked = await self._parking.count()
                    counted = monotonic()
                if self._control.stopped is None and not self._draining:
                    await self._parking.begin()
            except PauseConsumption as error:
                await self._wait_for(error)
            self._throttle()
            self._wake.set()
            await self._until_next_look(look)

    async def _look(self) -> None:
        if not self._control.ready:
            await self._control.sync_interrupted()
        await self._control.sync()
        await self._offsets.learn_starts()
        await self._parking.look()

    async def _until_next_look(self, seconds: float) -> None:
        due = self._parking.next_due()
        if due is not None:
            seconds = min(seconds, max(0.01, (due - self._clock()).total_seconds()))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._parking_wake.wait()

    # --- rebalance and shutdown ---------------------------------------------------------------------------------

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        partitions = [partition.partition for partition in assigned]
        self._offsets.own(partitions)
        self._parking.assigned(partitions)
        self._parking_wake.set()
        self._paused = False
        self._throttle()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Finish what is in a transaction, drop what is not begun, commit: the new owner starts after this."""
        gone = {partition.partition for partition in revoked}
        lanes = set(self._lanes.revoke(gone))
        self._parking.revoked(gone)
        self._slow.cancel(lanes)
        await self._finish_begun()
        await self._offsets.give_up(gone)
        self._in_flight_bytes -= sum(len(record.value or b"") for lane in lanes for record in lane.records)
        self._count_stopped()

    async def drain(self) -> None:
        """Begin nothing new, finish what is begun, publish it and commit the offsets; bounded in time."""
        self._draining = True
        self._slow.cancel()
        await self._finish_begun()
        await self._offsets.commit()

    async def _finish_begun(self) -> None:
        try:
            async with asyncio.timeout(self._limits.drain_timeout.total_seconds()):
                if self._batches:
                    await asyncio.wait(self._batches)
                await self._emitter.idle()
                await self._parking.idle()
        except TimeoutError:
            log.warning("handing-over-unfinished", group=self.subscription.group)

    def _count_stopped(self) -> None:
        self._stopped_gauge.set(self._lanes.stopped)

    def status(self) -> Status:
        return Status(
            connected=self._offsets.consumer is not None,
            partitions=self._offsets.partitions,
            in_flight=self._offsets.in_flight,
            stopped_patients=self._lanes.stopped,
            store_away=self._store_away,
            broker_away=self._emitter.broker_away,
            paused=self._paused,
            stopped=self._control.stopped,
            parked_full=self._parked_full,
            parked_patients=self._parked[0],
            parked_events=self._parked[1],
        )
