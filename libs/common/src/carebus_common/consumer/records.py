"""From a Kafka record to a record in a patient's lane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

from aiokafka import ConsumerRecord

from carebus_common.consumer.change import Handler, PatientEvent, Position
from carebus_common.consumer.errors import Undecodable
from carebus_common.consumer.lanes import LaneKey, Record

__all__ = ["Subscription", "read_record"]

E = TypeVar("E", bound=PatientEvent)


@dataclass(frozen=True, slots=True)
class Subscription(Generic[E]):
    """What a service consumes and what it does with it.

    `decode` turns a record's value into the event and raises any exception if it cannot. `content` gives the
    bytes that two copies of one event have in common; another payload under the same eventId is a conflict.
    """

    topic: str
    group: str
    decode: Callable[[bytes], E]
    handler: Handler[E]
    content: Callable[[E], bytes]


def read_record(subscription: Subscription[E], raw: ConsumerRecord) -> tuple[LaneKey, Record[E]]:
    """The record and its lane. What is no event, or not under its patient's key, has `problem` instead of `event`."""
    position = Position(raw.topic, raw.partition, raw.offset)
    headers = tuple(raw.headers)
    try:
        event = subscription.decode(raw.value)
        # Order is per key: under another key the event would not be in its patient's order.
        _require(raw.key == event.patient_id.encode(), "the record's key is not the patientId")
        content_hash = blake2b(subscription.content(event), digest_size=16).digest()
    except Exception as error:
        problem = error if isinstance(error, Undecodable) else Undecodable(type(error).__name__)
        record = Record[E](position, raw.key, raw.value, headers, raw.timestamp, None, "", b"", problem)
        return (raw.partition, _organization_of(headers), raw.key or b""), record
    inbox_id = f"{event.organization_id}/{event.event_id}"
    record = Record(position, raw.key, raw.value, headers, raw.timestamp, event, inbox_id, content_hash)
    return (raw.partition, event.organization_id, raw.key), record


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise Undecodable(rule)


def _organization_of(headers: tuple[tuple[str, bytes], ...]) -> str:
    """Whose a record is that is no event: a patientId alone may be two organizations'."""
    for name, value in headers:
        if name == "organizationId":
            return value.decode(errors="replace")
    return ""
