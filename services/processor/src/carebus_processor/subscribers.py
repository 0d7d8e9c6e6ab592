"""What the processor consumes. FastStream fetches; the ordered runtime decides when an offset is committed."""

from __future__ import annotations

import msgspec
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage

from carebus_common.consumer import Handler, OrderedConsumer, Subscription
from carebus_common.consumer.service import FETCHING
from carebus_common.contracts.event import MedicalEvent
from carebus_common.contracts.topics import EVENTS
from carebus_processor.handlers import handle_event

__all__ = ["subscribe", "subscription"]


def subscription(
    group: str, topic: str = EVENTS.name, *, handler: Handler[MedicalEvent] = handle_event
) -> Subscription[MedicalEvent]:
    return Subscription(topic, group, MedicalEvent.model_validate_json, handler, content)


def subscribe(broker: KafkaBroker, consumer: OrderedConsumer[MedicalEvent]) -> None:
    """Let `broker` feed `consumer`."""
    what = consumer.subscription

    @broker.subscriber(  # type: ignore[untyped-decorator]
        what.topic,
        group_id=what.group,
        ack_policy=AckPolicy.MANUAL,
        listener=consumer,
        **FETCHING,
    )
    async def medical_events(message: KafkaMessage) -> None:
        consumer.accept(message.raw_message)


def content(event: MedicalEvent) -> bytes:
    """What two copies of one event have in common: everything but when they were received."""
    return msgspec.json.encode((event.patient_id, event.type, event.ts, event.data), order="deterministic")
