"""What an ordered consumer works with, in memory: its store, its publisher and its Kafka consumer.

They keep the contract of the real parts (one suite tests both) and fail when told to. Each call takes as long as its
`Line` says, so that a simulation can interleave, cut off and crash whoever is on it at any point.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import bson
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, KafkaConnectionError
from bson.codec_options import CodecOptions

from carebus_common.consumer.change import Position
from carebus_common.consumer.errors import StoreAway
from carebus_common.consumer.letters import letter_id
from carebus_common.consumer.parked_store import ControlRow, ParkedStore, Request, asked_of
from carebus_common.consumer.rows import ParkedPatient, PatientRow
from carebus_common.consumer.store import (
    Effects,
    InboxRow,
    Moved,
    PatientWrite,
    Store,
    Writes,
    carried_out,
    message_from_document,
    patient_document,
    patient_from_document,
    translated,
)
from carebus_common.kafka import BrokerAway, MessageRefused
from carebus_common.messages import Message, Receipt

__all__ = [
    "Line",
    "Memory",
    "MemoryConsumer",
    "MemoryGroup",
    "MemoryParkedStore",
    "MemoryPublisher",
    "MemoryStore",
    "State",
]

Document = dict[str, Any]

_OPTIONS: CodecOptions[Document] = CodecOptions(tz_aware=True, tzinfo=UTC)


State = Literal["up", "away", "unsure", "hangs"]


async def _at_once() -> None:
    """No time at all."""


@dataclass
class Line:
    """The way to a part. `away`: nothing arrives; `unsure`: it arrives, and the answer is lost; `hangs`: the
    caller waits for its `patience` (seconds) and gives up.

    `pause` is awaited before and after each call has its effect.
    """

    state: State = "up"
    pause: Callable[[], Awaitable[None]] = _at_once
    patience: float = 20.0

    async def there(self) -> bool:
        """Wait until the call arrives; whether it does."""
        await self.pause()
        return self.state != "away" and not await self._hangs()

    async def back(self) -> bool:
        """Wait until the answer arrives; whether it does."""
        await self.pause()
        return self.state == "up" and not await self._hangs()

    async def _hangs(self) -> bool:
        if self.state != "hangs":
            return False
        await asyncio.sleep(self.patience)
        return True


class Memory:
    """Collections of documents by `_id`, as a database would keep them: what is put in is what BSON makes of it."""

    def __init__(self, line: Line | None = None) -> None:
        self.line = line or Line()
        self._collections: dict[str, dict[str, Document]] = defaultdict(dict)

    def __getitem__(self, collection: str) -> dict[str, Document]:
        return self._collections[collection]

    def put(self, collection: str, row: Mapping[str, Any]) -> None:
        self[collection][row["_id"]] = stored(row)

    def update(self, other: Memory) -> None:
        for collection, rows in other._collections.items():
            self[collection].update(rows)


def stored(row: Mapping[str, Any]) -> Document:
    """A copy of the row as it comes back. Raises what the driver raises for what no store can hold."""
    return bson.decode(bson.encode(row), _OPTIONS)


class MemoryStore(Store):
    """`Store` over a `Memory`; only a `write` can be left unsure.

    In place of a session, `effects` is given a `Memory`: what is put there is put into `memory` with all else.
    """

    def __init__(self, memory: Memory, *, effects: Effects | None = None) -> None:
        self.memory = memory
        self._effects = effects

    async def patient_rows(self, row_ids: Sequence[str]) -> dict[str, PatientRow]:
        return {
            name: patient_from_document(row) for name, row in (await _found(self.memory, "patients", row_ids)).items()
        }

    async def inbox_rows(self, inbox_ids: Sequence[str]) -> dict[str, InboxRow]:
        return {
            name: InboxRow(
                Position(**row["source"]), row["contentHash"], tuple(map(message_from_document, row["messages"]))
            )
            for name, row in (await _found(self.memory, "inbox", inbox_ids)).items()
        }

    async def write(self, writes: Writes) -> None:
        if not await self.memory.line.there():
            raise StoreAway("away")
        with translated():
            async with AsyncExitStack() as ended:
                put = Memory()
                await carried_out(self._effects, put, writes, ended)
                self._write(writes, put)
        if not await self.memory.line.back():
            raise StoreAway("the outcome is unknown")

    def _write(self, writes: Writes, put: Memory) -> None:
        memory = self.memory
        # All that may be refused comes first, so that nothing is undone.
        inbox = _new_rows(memory["inbox"], writes.inbox)
        queued = _new_rows(memory["parked_events"], writes.queued)
        patients = {write.row_id: stored(patient_document(write)) for write in writes.patients}
        if any(not self._is_as_read(write) for write in writes.patients):
            raise Moved
        letters = [stored(row) for row in writes.dead_letters]
        updates = [(update, stored(update.fields)) for update in writes.letters]
        parked = {patient.row_id: stored(patient.document()) for patient in writes.parked}
        memory.update(put)
        memory["inbox"].update(inbox)
        memory["patients"].update(patients)
        for row in letters:
            memory["dead_letters"].setdefault(row["_id"], row)
        for update, fields in updates:
            _set(memory["dead_letters"], update.letter_id, fields, status=update.expected)
        memory["parked_events"].update(queued)
        for name in writes.dequeued:
            memory["parked_events"].pop(name, None)
        memory["parked_patients"].update(parked)
        for name in writes.unparked:
            memory["parked_patients"].pop(name, None)

    def _is_as_read(self, write: PatientWrite) -> bool:
        row = self.memory["patients"].get(write.row_id)
        if row is None or not write.read.exists:
            return row is None and not write.read.exists
        as_read = patient_document(replace(write, new=write.read))
        return (row["position"], row["parked"]) == (as_read["position"], as_read["parked"])


class MemoryParkedStore(ParkedStore):
    """`ParkedStore` over a `Memory`."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    async def _arrive(self) -> None:
        if not await self.memory.line.there():
            raise StoreAway("away")

    async def active(self, topic: str, partitions: Collection[int]) -> list[ParkedPatient]:
        await self._arrive()
        found = [
            ParkedPatient.from_document(row)
            for row in self.memory["parked_patients"].values()
            if row["status"] != "dead-lettered" and row["topic"] == topic and row["partition"] in partitions
        ]
        await self.memory.line.pause()
        return found

    async def parked_patients(self, row_ids: Sequence[str]) -> dict[str, ParkedPatient]:
        rows = await _found(self.memory, "parked_patients", row_ids)
        return {name: ParkedPatient.from_document(row) for name, row in rows.items()}

    async def letters(self, letter_ids: Sequence[str]) -> dict[str, Document]:
        return await _found(self.memory, "dead_letters", letter_ids)

    async def queue_rows(self, ids: Sequence[str]) -> dict[str, Document]:
        return await _found(self.memory, "parked_events", ids)

    async def counts(self) -> tuple[int, int]:
        await self._arrive()
        return len(self.memory["parked_patients"]), len(self.memory["parked_events"])

    async def requests(self, topic: str, partitions: Collection[int], limit: int) -> list[Request]:
        await self._arrive()
        rows = [
            row
            for row in self.memory["dead_letter_requests"].values()
            if row["topic"] == topic and row["partition"] in partitions
        ][:limit]
        found = [
            Request(
                row["_id"],
                row["partition"],
                row["action"],
                tuple(row["deadLetterIds"]),
                asked_of(row),
            )
            for row in sorted(rows, key=lambda row: row["requestedAt"])
        ]
        await self.memory.line.pause()
        return found

    async def requests_done(self, ids: Sequence[str]) -> None:
        await self._arrive()
        for name in ids:
            self.memory["dead_letter_requests"].pop(name, None)
        await self.memory.line.pause()

    async def letters_published(self, published: Iterable[tuple[str, str | None]], now: datetime) -> None:
        await self._arrive()
        for letter, row_id in published:
            _set(self.memory["dead_letters"], letter, {"publishedAt": now})
            if row_id is not None:
                mine = {"status": "publishing", "deadLetter": letter}
                _set(self.memory["parked_patients"], row_id, {"status": "dead-lettered"}, **mine)
        await self.memory.line.pause()

    async def discard_unblocking(self, letter_ids: Sequence[str], asked: Mapping[str, Any], now: datetime) -> None:
        await self._arrive()
        outcome = {"status": "discarded", "at": now, "deadLetter": None}
        fields = {"status": "discarded", "discard": dict(asked), "outcome": outcome}
        for name in letter_ids:
            _set(self.memory["dead_letters"], name, fields, status="open", blocking=False)
        await self.memory.line.pause()

    async def control(self, group: str) -> ControlRow | None:
        row = (await _found(self.memory, "consumers", [group])).get(group)
        return None if row is None else ControlRow(row["version"], row["paused"], row["failures"])

    async def save_control(self, group: str, row: ControlRow) -> bool:
        await self._arrive()
        before = self.memory["consumers"].get(group)
        if (before is None) != (row.version == 1) or (before is not None and before["version"] != row.version - 1):
            return False
        fields = {"paused": row.paused, "failures": row.failures, "version": row.version}
        self.memory.put("consumers", {"_id": group, **fields})
        await self.memory.line.pause()
        return True

    async def report_interrupted(self, topic: str, positions: Sequence[tuple[int, int]], now: datetime) -> None:
        await self._arrive()
        for partition, offset in positions:
            name = letter_id(Position(topic, partition, offset))
            deaths = self.memory["interrupted_events"].get(name, {"deaths": 0})["deaths"]
            self.memory.put("interrupted_events", {"_id": name, "deaths": deaths + 1, "lastAt": now})

    async def interrupted(self) -> dict[str, int]:
        await self._arrive()
        return {name: row["deaths"] for name, row in self.memory["interrupted_events"].items()}

    async def forget_interrupted(self, places: Sequence[str]) -> None:
        await self._arrive()
        for name in places:
            self.memory["interrupted_events"].pop(name, None)


async def _found(memory: Memory, collection: str, ids: Iterable[str]) -> dict[str, Document]:
    if not await memory.line.there():
        raise StoreAway("away")
    rows = memory[collection]
    found = {name: stored(rows[name]) for name in dict.fromkeys(ids) if name in rows}
    await memory.line.pause()
    return found


def _new_rows(existing: Mapping[str, Document], rows: Sequence[Document]) -> dict[str, Document]:
    new = {row["_id"]: stored(row) for row in rows}
    if len(new) < len(rows) or not new.keys().isdisjoint(existing):
        raise Moved
    return new


def _set(rows: dict[str, Document], name: str, fields: Mapping[str, Any], **expected: Any) -> None:
    """Set fields of a row that is there and is as expected."""
    row = rows.get(name)
    if row is not None and all(row[field] == value for field, value in expected.items()):
        rows[name] = stored({**row, **fields})


@dataclass
class MemoryPublisher:
    """`Publishes` that appends to `log`. While it is away, the first `arriving(n)` of a key's n messages arrive all
    the same, and none is acknowledged."""

    log: list[Message] = field(default_factory=list)
    line: Line = field(default_factory=Line)
    arriving: Callable[[int], int] = lambda count: 0

    async def publish_each(self, messages: Sequence[Message]) -> list[Receipt | BrokerAway | MessageRefused]:
        arrives = await self.line.there()
        if arrives:
            self.log.extend(messages)
        else:
            by_key: dict[tuple[str, bytes | None], list[Message]] = defaultdict(list)
            for message in messages:
                by_key[message.topic, message.key].append(message)
            for of_key in by_key.values():
                self.log.extend(of_key[: self.arriving(len(of_key))])
        if not await self.line.back() or not arrives:
            return [BrokerAway() for _ in messages]
        return [Receipt(0, len(self.log)) for _ in messages]


@dataclass
class MemoryGroup:
    """A consumer group of one topic, as its coordinator knows it: who owns which partition, and what was committed."""

    topic: str
    line: Line = field(default_factory=Line)
    owners: dict[int, MemoryConsumer] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)


class MemoryConsumer:
    """What the runtime calls of an `AIOKafkaConsumer`: a member of the group that takes itself for the owner of
    `assigned`."""

    def __init__(self, group: MemoryGroup) -> None:
        self.group = group
        self.assigned: set[TopicPartition] = set()
        self._paused: set[TopicPartition] = set()

    def assign(self, partitions: Iterable[int]) -> set[TopicPartition]:
        """Take these partitions, and only these, for one's own; none of them is paused."""
        self.assigned = {TopicPartition(self.group.topic, partition) for partition in partitions}
        self._paused = set()
        return set(self.assigned)

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self.assigned)

    def pause(self, *partitions: TopicPartition) -> None:
        self._paused.update(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self._paused.difference_update(partitions)

    def paused(self) -> set[TopicPartition]:
        return set(self._paused)

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Raises `CommitFailedError` where somebody else owns one of the partitions."""
        if not await self.group.line.there():
            raise KafkaConnectionError
        if any(self.group.owners.get(partition.partition) is not self for partition in offsets):
            raise CommitFailedError
        self.group.committed.update({partition.partition: offset for partition, offset in offsets.items()})
        if not await self.group.line.back():
            raise KafkaConnectionError

    async def committed(self, partition: TopicPartition) -> int | None:
        if not await self.group.line.there():
            raise KafkaConnectionError
        return self.group.committed.get(partition.partition)
