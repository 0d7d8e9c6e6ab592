"""Replicas of the ordered consumer over parts in memory and in simulated time: deterministic and fast."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import count
from typing import Any
from uuid import UUID

import msgspec
from aiokafka import ConsumerRecord, TopicPartition

from carebus_common.consumer import (
    Change,
    DeadLetter,
    Delivery,
    Limits,
    OrderedConsumer,
    PauseConsumption,
    RetryLater,
    RetryPolicy,
    State,
    Subscription,
)
from carebus_common.messages import Message
from carebus_common.testing.consumer import (
    Line,
    Memory,
    MemoryConsumer,
    MemoryGroup,
    MemoryParkedStore,
    MemoryPublisher,
    MemoryStore,
)

TOPIC, OUT, DLQ = "t", "out", "t-dlq"
PARTITIONS = 2
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
# Everything that may still be under way ends within this: retries, backoffs, drains.
SETTLED_WITHIN = 20

# What becomes of an event. Those of the first line succeed in the end; the others fail until they are mended.
PASSING = ("fine", "slow", "flaky", "slow flaky", "pausing")
FAILING = ("permanent", "failing", "slow failing", "hangs", "refused")


class SimulatedTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes at once whenever everybody waits for it."""

    def __init__(self) -> None:
        self._simulated = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self._simulated

    def pass_by(self, seconds: float) -> None:
        self._simulated += seconds


class _Selector(selectors.SelectSelector):
    def __init__(self, loop: SimulatedTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everybody waits, and nobody for the time to pass"
        self._loop.pass_by(timeout)
        return super().select(0)


class Event(msgspec.Struct, frozen=True):
    event_id: UUID
    organization_id: str
    patient_id: str
    n: int


def content(event: Event) -> bytes:
    return msgspec.json.encode((event.patient_id, event.n))


@dataclass(frozen=True)
class Patient:
    organization_id: str
    patient_id: str
    partition: int

    @property
    def row_id(self) -> str:
        return f"{self.organization_id}/{self.patient_id}"


@dataclass(frozen=True)
class Accepted:
    """A record of the log; `patient` is None where it has no key, `event` where it is none."""

    partition: int
    offset: int
    patient: Patient | None
    event: Event | None

    @property
    def place(self) -> str:
        return f"{TOPIC}-{self.partition}-{self.offset}"

    @property
    def inbox_id(self) -> str | None:
        return f"{self.event.organization_id}/{self.event.event_id}" if self.event else None

    @property
    def content_hash(self) -> bytes | None:
        return blake2b(content(self.event), digest_size=16).digest() if self.event else None


@dataclass
class Script:
    """What the handler does with an event."""

    kind: str
    failures: int = 0
    mended: bool = False


@dataclass
class Replica:
    """One member of the group. It fetches what it believes to own."""

    consumer: MemoryConsumer
    runtime: OrderedConsumer[Event]
    positions: dict[int, int] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def own(self) -> set[TopicPartition]:
        return set(self.consumer.assignment())


class World:
    """The parts, the replicas and what they were given. `settings` are fields of the `Limits`."""

    def __init__(self, seed: int, **settings: int) -> None:
        self.loop = SimulatedTimeLoop()
        self.rng = random.Random(seed)
        self.store = Line(pause=self._pause, patience=2.0)
        # What is published may wait although records are fetched and offsets committed.
        self.broker = Line(pause=self._pause, patience=2.0)
        self.coordinator = Line(pause=self._pause, patience=2.0)
        self.memory = Memory(self.store)
        self.published: list[Message] = []
        self.group = MemoryGroup(TOPIC, self.coordinator)
        self.log: dict[int, list[ConsumerRecord]] = {p: [] for p in range(PARTITIONS)}
        self.accepted: list[Accepted] = []
        self.scripts: dict[int, Script] = {}
        self.calls: Counter[int] = Counter()
        self.effects = count()
        self.requests = 0
        self.replicas: dict[str, Replica] = {}
        self.answers: list[Coroutine[Any, Any, Change]] = []
        self.limits = Limits(**{"drain_timeout": timedelta(seconds=1), **settings})  # type: ignore[arg-type]

    async def _pause(self) -> None:
        if self.rng.random() < 0.5:
            await asyncio.sleep(self.rng.random() * 0.005)

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.loop.time())

    def do(self, what: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(what)
        for replica in self.replicas.values():
            for task in replica.tasks:
                if task.done():
                    task.result()

    def pass_time(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    def close(self) -> None:
        try:
            for name in list(self.replicas):
                self.crash(name)
        finally:
            for answer in self.answers:
                answer.close()  # a process that ends does not run what it has not begun
            self.loop.run_until_complete(_cancelled(asyncio.all_tasks(self.loop)))
            self.loop.close()

    # --- the log --------------------------------------------------------------------------------------------------

    def accept(self, patient: Patient | None, event: Event | None) -> None:
        """Append an event, or what is none, to the log, under its patient's key."""
        partition = patient.partition if patient else 0
        key = patient.patient_id.encode() if patient else None
        headers = [("organizationId", patient.organization_id.encode())] if patient else []
        value = msgspec.json.encode(event) if event else b"{"
        offset = len(self.log[partition])
        self.log[partition].append(
            ConsumerRecord(TOPIC, partition, offset, 0, 0, key, value, None, -1, len(value), headers)
        )
        self.accepted.append(Accepted(partition, offset, patient, event))

    def ask(self, action: str, letter_ids: Iterable[str]) -> None:
        """Ask the owners to redrive or discard dead letters, as the ops API does."""
        by_partition: dict[int, list[str]] = {}
        for name in letter_ids:
            by_partition.setdefault(self.memory["dead_letters"][name]["source"]["partition"], []).append(name)
        for partition, names in by_partition.items():
            self.requests += 1
            self.memory.put(
                "dead_letter_requests",
                {
                    "_id": str(self.requests),
                    "topic": TOPIC,
                    "partition": partition,
                    "action": action,
                    "deadLetterIds": names,
                    "by": "an engineer",
                    "organizationId": "carebus",
                    "reason": "it is mended",
                    "requestedAt": self.now(),
                },
            )

    # --- replicas -------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Let a member join that owns nothing yet."""
        consumer = MemoryConsumer(self.group)
        runtime = OrderedConsumer(
            Subscription(
                TOPIC,
                "g",
                msgspec.json.Decoder(Event).decode,
                self._handle,
                content,
                dead_letter_topic=DLQ,
                retry=RetryPolicy(base=timedelta(milliseconds=50), jitter=0, deadline=timedelta(days=1)),
                handler_deadline=timedelta(milliseconds=500),
            ),
            MemoryStore(self.memory, effects=self._carry_out),
            MemoryPublisher(self.published, self.broker, lambda count: self.rng.randint(0, count)),
            limits=self.limits,
            parked=MemoryParkedStore(self.memory),
            clock=self.now,
        )
        runtime.attach(consumer)
        replica = self.replicas[name] = Replica(consumer, runtime)
        replica.tasks = [self.loop.create_task(runtime.run()), self.loop.create_task(self._fetch(replica))]

    async def _fetch(self, replica: Replica) -> None:
        while True:
            await asyncio.sleep(self.rng.random() * 0.05)
            if self.coordinator.state != "up":
                continue
            for partition in sorted(replica.own - replica.consumer.paused()):
                at = replica.positions.get(partition.partition)
                if at is not None and at < len(self.log[partition.partition]):  # None: between two assignments
                    records = self.log[partition.partition][at : at + self.rng.randint(1, 5)]
                    replica.positions[partition.partition] = at + len(records)
                    replica.runtime.accept(records)

    def crash(self, name: str) -> None:
        """End a replica where it stands; its partitions are nobody's until the group is rebalanced."""
        replica = self.replicas.pop(name)
        for task in replica.tasks:
            task.cancel()
        self.do(_ended(replica.tasks))
        self.group.owners = {p: owner for p, owner in self.group.owners.items() if owner is not replica.consumer}

    def leave(self, name: str) -> None:
        """Stop a replica as a deploy does."""
        replica = self.replicas[name]
        replica.positions.clear()
        self.do(replica.runtime.drain())
        self.crash(name)

    @property
    def orderly(self) -> bool:
        """Whether each partition is owned, and by the one replica that believes so."""
        believed = [(tp.partition, r.consumer) for r in self.replicas.values() for tp in r.own]
        return len(believed) == PARTITIONS and dict(believed) == self.group.owners

    def rebalance(self, owners: Mapping[int, str]) -> None:
        """Give each partition to a replica, as everybody is told: all is revoked first."""
        self.do(self._rebalance(owners, self.replicas.values()))

    def steal(self, name: str) -> None:
        """Give all partitions to a replica, while the others go on in the belief that they own them."""
        self.do(self._rebalance(dict.fromkeys(self.log, name), [self.replicas[name]]))

    async def _rebalance(self, owners: Mapping[int, str], told: Iterable[Replica]) -> None:
        for replica in told:
            replica.positions.clear()
        await asyncio.gather(*(replica.runtime.on_partitions_revoked(replica.own) for replica in told))
        self.group.owners = {partition: self.replicas[name].consumer for partition, name in owners.items()}
        for replica in told:
            mine = [p for p, owner in self.group.owners.items() if owner is replica.consumer]
            await replica.runtime.on_partitions_assigned(replica.consumer.assign(mine))
            replica.positions = {partition: self.group.committed.get(partition, 0) for partition in mine}

    async def _carry_out(self, put: Memory, effects: Sequence[tuple[dict[str, Any], Any]], _: AsyncExitStack) -> None:
        await self.memory.line.pause()
        for document, effect in effects:
            # Under a name of its own: a second one of the same event would show.
            put.put("effects", {"_id": next(self.effects), "of": document["_id"], "n": effect})

    # --- the handler ----------------------------------------------------------------------------------------------

    def _handle(self, state: State | None, delivery: Delivery[Event]) -> Any:
        event = delivery.event
        script = self.scripts[event.n]
        self.calls[event.n] += 1
        fails = script.kind in FAILING and not script.mended
        flaky = self.calls[event.n] <= script.failures
        seen = [*(state["seen"] if state else []), event.n]
        key = f"{event.organization_id}/{event.patient_id}".encode()
        row = {"n": event.n, **({"too-large": 2**70} if fails and script.kind == "refused" else {})}
        change = Change(row, {"seen": seen}, (Message(OUT, key, str(event.n).encode()),), effects=(event.n,))

        def outcome() -> Change:
            if flaky:
                raise PauseConsumption("away") if script.kind == "pausing" else ValueError("not now")
            if fails and script.kind == "permanent":
                raise DeadLetter("never")
            if fails and script.kind.endswith("failing"):
                raise RetryLater("not yet")
            return change

        async def slowly() -> Change:
            await asyncio.sleep(self.rng.random() * 0.1)
            if fails and script.kind == "hangs":
                await asyncio.Event().wait()
            return outcome()

        if not script.kind.startswith("slow") and script.kind != "hangs":
            return outcome()
        self.answers.append(slowly())
        return self.answers[-1]


async def _cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    others = [task for task in tasks if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
