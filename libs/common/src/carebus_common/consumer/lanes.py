"""One lane a patient: its records in the order of the log, and at most one of them being worked on."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import Any, Generic, Literal, TypeVar

from carebus_common.consumer.change import Change, PatientEvent, Position
from carebus_common.consumer.rows import ParkedPatient, PatientRow

__all__ = ["Handled", "Lane", "LaneKey", "Lanes", "Letter", "Record", "row_id_of"]

E = TypeVar("E", bound=PatientEvent)

# Partition, organization and patient: two organizations may use the same patientId, and one must not hold up
# the other; a patient is on one partition unless their number was changed.
LaneKey = tuple[int, str, bytes]


@dataclass(frozen=True, slots=True)
class Letter:
    """The dead letter that a record comes from, and what was asked for it: by whom, why and when.

    `asked` is None where it was redriven before and is only tried again.
    """

    id: str
    redrives: int
    action: Literal["redrive", "discard"]
    asked: Mapping[str, Any] | None


@dataclass(slots=True, eq=False)
class Record(Generic[E]):
    """One Kafka record, decoded; `event` is None where that failed (`problem` says why).

    One that was parked has the number of its `row` in the patient's queue; a dead letter's has the `letter`.
    """

    position: Position
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: int
    event: E | None
    inbox_id: str
    content_hash: bytes
    problem: Exception | None = None
    row: int | None = None
    letter: Letter | None = None
    # The store refused what its handler made of it.
    refused: bool = False

    @property
    def live(self) -> bool:
        """Whether it comes from the log, so that its offset waits for it."""
        return self.row is None and self.letter is None


@dataclass(frozen=True, slots=True)
class Handled(Generic[E]):
    """What a handler made of a record: its change or what it raised, given the row it saw."""

    record: Record[E]
    seen: PatientRow
    result: Change | Exception
    started: datetime
    duration_ms: float


class Progress(Enum):
    WAITING = auto()  # has records, or none; nobody works on it
    BUSY = auto()  # its records are in a batch
    HANDLING = auto()  # its first record's coroutine handler runs
    SETTLING = auto()  # what was taken from its queue is applied; its messages are on their way
    STOPPED = auto()  # the store refuses even to park it: nothing of it moves


@dataclass(slots=True, eq=False)
class Lane(Generic[E]):
    key: LaneKey
    records: deque[Record[E]] = field(default_factory=deque)
    # What was loaded of a parked patient's queue; it goes before `records`.
    queue: deque[Record[E]] = field(default_factory=deque)
    # The parked patient's row, while its queue is being worked on.
    parked: ParkedPatient | None = None
    # Which of the two the batch at work takes from, and which batch that is: one that splits itself goes on while its
    # settled lanes are taken by another.
    queued: bool = False
    batch: object = None
    # How many records of the queue are applied and have messages on their way, and their rows' numbers.
    emitting: int = 0
    emitted_rows: list[int] = field(default_factory=list)
    progress: Progress = Progress.WAITING
    # None until it is read; kept between batches so that a busy patient is not read again for each.
    row: PatientRow | None = None
    # Set once the first record's coroutine handler has ended.
    handled: Handled[E] | None = None
    revoked: bool = False

    @property
    def front(self) -> deque[Record[E]]:
        return self.queue if self.queued else self.records

    def held_by(self, batch: object) -> bool:
        """Whether the batch is at work on the lane, whose partition is still owned."""
        return self.progress is Progress.BUSY and self.batch is batch and not self.revoked

    def drop_queue(self) -> None:
        self.queue.clear()
        self.parked = None


def row_id_of(key: LaneKey) -> str:
    """The `_id` of the lane's patient; a key that is no text has one too."""
    return f"{key[1]}/{key[2].decode(errors='backslashreplace')}"


class Lanes(Generic[E]):
    """All lanes of the owned partitions; the ready ones in the order in which they became ready."""

    def __init__(self, *, idle_limit: int) -> None:
        self._lanes: OrderedDict[LaneKey, Lane[E]] = OrderedDict()
        self._ready: OrderedDict[LaneKey, Lane[E]] = OrderedDict()
        self._idle: OrderedDict[LaneKey, None] = OrderedDict()
        self._stopped: set[LaneKey] = set()
        self._idle_limit = idle_limit

    def of(self, key: LaneKey) -> Lane[E]:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        return lane

    def append(self, key: LaneKey, record: Record[E]) -> None:
        lane = self.of(key)
        lane.records.append(record)
        self.ready(lane)

    def ready(self, lane: Lane[E]) -> None:
        """Let a lane that was given records be taken, unless somebody is at it: its release does so then."""
        if lane.progress is Progress.WAITING:
            self._idle.pop(lane.key, None)
            self._ready[lane.key] = lane

    def take(self, max_records: int, *, queues_only: bool = False) -> dict[Lane[E], int]:
        """Make ready lanes busy and tell how many records of each are due; `max_records` in all.

        A lane gives at most an even share while others wait, so that one patient's flood shares a batch. With
        `queues_only`, lanes that have nothing but live records are left waiting.
        """
        taken: dict[Lane[E], int] = {}
        left = max_records
        share = max(1, max_records // max(1, len(self._ready)))
        for _ in range(len(self._ready)):
            if left <= 0:
                break
            key, lane = self._ready.popitem(last=False)
            if queues_only and not lane.queue:
                self._ready[key] = lane
                continue
            lane.queued = bool(lane.queue)
            due = min(len(lane.front), left, max(share, 16))
            lane.progress = Progress.BUSY
            taken[lane] = due
            left -= due
            self._idle.pop(key, None)
        return taken

    def handling(self, lane: Lane[E]) -> None:
        lane.progress = Progress.HANDLING

    def settling(self, lane: Lane[E]) -> None:
        lane.progress = Progress.SETTLING

    def stop(self, lane: Lane[E]) -> None:
        lane.progress = Progress.STOPPED
        self._stopped.add(lane.key)

    def release(self, lane: Lane[E]) -> None:
        """Let a lane wait again: ready if it has records, else idle with its row kept for a while."""
        if lane.revoked or self._lanes.get(lane.key) is not lane:
            return
        lane.progress = Progress.WAITING
        if lane.queue or lane.records:
            self._ready[lane.key] = lane
            return
        self._idle[lane.key] = None
        while len(self._idle) > self._idle_limit:
            old, _ = self._idle.popitem(last=False)
            del self._lanes[old]

    def revoke(self, partitions: Iterable[int]) -> list[Lane[E]]:
        """Forget the lanes of these partitions and return them; whoever works on one sees `revoked`."""
        gone = set(partitions)
        lanes = [lane for lane in self._lanes.values() if lane.key[0] in gone]
        for lane in lanes:
            lane.revoked = True
            del self._lanes[lane.key]
            self._ready.pop(lane.key, None)
            self._idle.pop(lane.key, None)
            self._stopped.discard(lane.key)
        return lanes

    @property
    def stopped(self) -> int:
        return len(self._stopped)

    @property
    def any_ready(self) -> bool:
        return bool(self._ready)

    def __len__(self) -> int:
        return len(self._lanes)
