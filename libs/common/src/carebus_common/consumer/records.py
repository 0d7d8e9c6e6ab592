"""From a Kafka record, or what was parked of it, to a record in a patient's lane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from aiokafka import ConsumerRecord

from carebus_common.consumer.change import Handler, PatientEvent, Position
from carebus_common.consumer.errors import Undecodable
from carebus_common.consumer.failures import FailureLimits
from carebus_common.consumer.lanes import LaneKey, Letter, Record
from carebus_common.consumer.retry import RetryPolicy

__all__ = ["Subscription", "lane_of", "read_letter", "read_queued", "read_record"]

E = TypeVar("E", bound=PatientEvent)


@dataclass(frozen=True, slots=True)
class Subscription(Generic[E]):
    """What a service consumes, what it does with it, and what happens when that fails.

    `decode` turns a record's value into the event and raises any exception if it cannot. `content` gives the
    bytes that two copies of one event have in common; another payload under the same eventId is a conflict.
    A handler that has not ended after `handler_deadline` has failed (a coroutine) or takes the process down (one that
    does not return); an event that was being handled at `crash_limit` deaths of the process is a dead letter.
    """

    topic: str
    group: str
    decode: Callable[[bytes], E]
    handler: Handler[E]
    content: Callable[[E], bytes]
    # None: dead letters are kept in the store only.
    dead_letter_topic: str | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    handler_deadline: timedelta = timedelta(seconds=30)
    crash_limit: int = 3
    failure_limits: FailureLimits = field(default_factory=FailureLimits)


def read_record(subscription: Subscription[E], raw: ConsumerRecord) -> tuple[LaneKey, Record[E]]:
    """The record and its lane. What is no event, or not under its patient's key, has `problem` instead of `event`."""
    record: Record[E] = _read(
        subscription,
        Position(raw.topic, raw.partition, raw.offset),
        raw.key,
        raw.value,
        tuple(raw.headers),
        raw.timestamp,
    )
    return lane_of(record), record


def lane_of(record: Record[Any]) -> LaneKey:
    organization_id: str = (
        record.event.organization_id if record.event is not None else _organization_of(record.headers)
    )
    return record.position.partition, organization_id, record.key or b""


def read_queued(subscription: Subscription[E], row: Mapping[str, Any], number: int) -> Record[E]:
    """The record of a row of `parked_events`."""
    record = _stored(subscription, row, row["value"])
    record.row = number
    return record


def read_letter(subscription: Subscription[E], document: Mapping[str, Any], letter: Letter) -> Record[E]:
    """The record of a dead letter, as it was edited."""
    edited = document.get("edited")
    record = _stored(subscription, document, document["value"] if edited is None else edited)
    record.letter = letter
    return record


def _stored(subscription: Subscription[E], row: Mapping[str, Any], value: bytes | None) -> Record[E]:
    return _read(
        subscription,
        Position(**row["source"]),
        None if row["key"] is None else bytes(row["key"]),
        None if value is None else bytes(value),
        tuple((name, None if content is None else bytes(content)) for name, content in row["headers"]),
        row["timestamp"],
    )


def _read(
    subscription: Subscription[E],
    position: Position,
    key: bytes | None,
    value: bytes | None,
    headers: tuple[tuple[str, Any], ...],
    timestamp: int,
) -> Record[E]:
    try:
        event = subscription.decode(value or b"")
        # Order is per key: under another key the event would not be in its patient's order.
        _require(key == event.patient_id.encode(), "the record's key is not the patientId")
        content_hash = blake2b(subscription.content(event), digest_size=16).digest()
    except Exception as error:
        # What it was raised from may quote the record; it is told by its class only.
        problem = error if isinstance(error, Undecodable) else Undecodable(type(error).__name__)
        return Record(position, key, value, headers, timestamp, None, "", b"", problem)
    inbox_id = f"{event.organization_id}/{event.event_id}"
    return Record(position, key, value, headers, timestamp, event, inbox_id, content_hash)


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise Undecodable(rule)


def _organization_of(headers: tuple[tuple[str, Any], ...]) -> str:
    """Whose a record is that is no event: a patientId alone may be two organizations'."""
    for name, value in headers:
        if name == "organizationId" and value is not None:
            return bytes(value).decode(errors="replace")
    return ""
