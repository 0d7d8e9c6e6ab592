"""A plan: what one transaction writes, and what becomes of each record of a batch. Values only."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Generic, TypeVar

from carebus_common.consumer.change import Change, PatientEvent
from carebus_common.consumer.failures import FailureWindow, Run
from carebus_common.consumer.lanes import Lane, Record, row_id_of
from carebus_common.consumer.rows import ParkedPatient, PatientRow
from carebus_common.consumer.store import PatientWrite, Writes
from carebus_common.messages import Message

__all__ = ["Fate", "Plan", "Settled", "Slow"]

E = TypeVar("E", bound=PatientEvent)


class Fate(Enum):
    """What became of a record."""

    PROCESSED = auto()
    REDELIVERED = auto()  # this very record had its effect before: its messages go out again
    FORGOTTEN = auto()  # redelivered; it was parked, or had its effect and its inbox row is past its retention
    DUPLICATE = auto()  # the same event at another offset: a sender's repetition
    CONFLICT = auto()  # the same eventId with another payload: the first one stands
    UNDECODABLE = auto()  # keyless and not an event: a dead letter that nobody waits for
    PARKED = auto()  # it waits in its patient's queue
    DEAD_LETTERED = auto()  # it is a dead letter, and its patient waits for a person
    DISCARDED = auto()  # a person decided that it has no effect


@dataclass(frozen=True, slots=True)
class Settled(Generic[E]):
    """A record that needs nothing more than its messages published.

    `letter` is the dead letter among them. `lane` is set for what came from that lane's queue and must leave it.
    """

    record: Record[E]
    fate: Fate
    messages: tuple[Message, ...] = ()
    letter: str | None = None
    lane: Lane[E] | None = None


@dataclass(frozen=True, slots=True)
class Slow(Generic[E]):
    """A record whose handler is a coroutine, not yet run, with the row it was given."""

    record: Record[E]
    seen: PatientRow
    answer: Awaitable[Change]
    started: datetime

    def close(self) -> None:
        """Drop the coroutine: it will not be run."""
        if inspect.iscoroutine(self.answer):
            self.answer.close()


@dataclass(slots=True)
class Plan(Generic[E]):
    """One transaction, and per lane what it settles and what stands in the way of its next record.

    `parked` are the lanes whose head changes, with the parked patient's new row (None: parked no more). `stale` are
    those whose queue may not be what this process knows of it, or is not to be worked on yet, and how long after this
    it is to be looked at again.
    """

    trial: FailureWindow
    writes: Writes = field(default_factory=Writes)
    settled: dict[Lane[E], list[Settled[E]]] = field(default_factory=dict)
    rows: dict[Lane[E], PatientRow] = field(default_factory=dict)
    slow: dict[Lane[E], Slow[E]] = field(default_factory=dict)
    parked: dict[Lane[E], ParkedPatient | None] = field(default_factory=dict)
    stale: dict[Lane[E], timedelta] = field(default_factory=dict)
    # First tries, in order, for the mass-failure stop.
    runs: list[Run] = field(default_factory=list)

    def close(self) -> None:
        """Drop coroutines that will not be run."""
        for slow in self.slow.values():
            slow.close()

    def tried(self, failed: bool, count: int = 1) -> None:
        if count:
            self.trial.add(failed, count)
            self.runs.append((failed, count))

    def finish(self, lane: Lane[E], settled: list[Settled[E]], read: PatientRow, row: PatientRow) -> None:
        """Enter what a lane's part of the plan came to."""
        self.settled[lane] = settled
        self.rows[lane] = row
        if row is not read:
            patient_id = lane.key[2].decode(errors="backslashreplace")
            self.writes.patients.append(PatientWrite(row_id_of(lane.key), lane.key[1], patient_id, read, row))
