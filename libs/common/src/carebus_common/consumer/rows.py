"""A patient in the owner's store: the row with the fence, and the row of one who is parked. Values only."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from carebus_common.consumer.change import Position
from carebus_common.logging import patient_hash

__all__ = ["NO_ROW", "Parked", "ParkedPatient", "PatientRow", "new_token", "queue_id", "source_document"]

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parked:
    """That a patient is parked: rows `head` to `next - 1` of `parked_events` wait behind the head of the queue.

    `first` is the record that failed and parked the patient, `tail` the newest one parked. `token` changes with what
    happens to the head of the queue, so that nobody acts twice on what they read once.
    """

    head: int
    next: int
    first: Position
    tail: Position
    token: int

    @property
    def waiting(self) -> int:
        return self.next - self.head

    def holds(self, position: Position) -> bool:
        """Whether the record is one of those parked, so that the queue sees to it and not the log."""
        first, tail = self.first, self.tail
        return (position.topic, position.partition) == (first.topic, first.partition) == (
            tail.topic,
            tail.partition,
        ) and first.offset <= position.offset <= tail.offset


@dataclass(frozen=True, slots=True)
class PatientRow:
    """A patient's row as read: the fence. `position` is the record last applied to it, None before any."""

    position: Position | None
    parked: Parked | None
    state: dict[str, Any] | None

    @property
    def exists(self) -> bool:
        return self.position is not None or self.parked is not None

    @property
    def received(self) -> Position | None:
        """The newest record of the patient that was applied or parked: all up to it have been seen to."""
        return self.position if self.parked is None else self.parked.tail


NO_ROW = PatientRow(position=None, parked=None, state=None)


@dataclass(frozen=True, slots=True)
class ParkedPatient:
    """One parked patient: what is at the head of the queue, and what happens to it next.

    `retrying` is due at `due_at`; `publishing` has a dead letter that the broker has not acknowledged yet;
    `dead-lettered` waits for a person. `attempts` are the failures of the head so far. `dead_letter` is the head
    where that is a dead letter, or one that is being redriven; otherwise the head is a row of the queue.
    """

    row_id: str
    organization_id: str
    patient_id: str
    topic: str
    partition: int
    status: Literal["retrying", "publishing", "dead-lettered"]
    since: datetime
    token: int
    attempts: int = 0
    due_at: datetime | None = None
    first_failed_at: datetime | None = None
    last_failed_at: datetime | None = None
    give_up_at: datetime | None = None
    failure: Mapping[str, Any] | None = None
    dead_letter: str | None = None

    def document(self) -> Document:
        return {
            "_id": self.row_id,
            "organizationId": self.organization_id,
            "patientId": self.patient_id,
            "patient": patient_hash(self.organization_id, self.patient_id),
            "topic": self.topic,
            "partition": self.partition,
            "status": self.status,
            "since": self.since,
            "token": self.token,
            "attempts": self.attempts,
            "dueAt": self.due_at,
            "firstFailedAt": self.first_failed_at,
            "lastFailedAt": self.last_failed_at,
            "giveUpAt": self.give_up_at,
            "failure": None if self.failure is None else dict(self.failure),
            "deadLetter": self.dead_letter,
        }

    @classmethod
    def from_document(cls, row: Mapping[str, Any]) -> ParkedPatient:
        return cls(
            row_id=row["_id"],
            organization_id=row["organizationId"],
            patient_id=row["patientId"],
            topic=row["topic"],
            partition=row["partition"],
            status=row["status"],
            since=row["since"],
            token=row["token"],
            attempts=row["attempts"],
            due_at=row["dueAt"],
            first_failed_at=row["firstFailedAt"],
            last_failed_at=row["lastFailedAt"],
            give_up_at=row["giveUpAt"],
            failure=row["failure"],
            dead_letter=row["deadLetter"],
        )


def new_token() -> int:
    """Unlike any other: a counter would repeat when a patient is parked a second time."""
    return secrets.randbits(62)


def queue_id(row_id: str, number: int) -> str:
    """The `_id` of a row of `parked_events`: looked up by itself, so that no store has to sort or to scan."""
    return f"{row_id}#{number}"


def source_document(position: Position) -> Document:
    return {"topic": position.topic, "partition": position.partition, "offset": position.offset}
