"""What the processor consumes. FastStream fetches; the ordered runtime decides when an offset is committed."""

from __future__ import annotations

import msgspec
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage

from carebus_common.consumer import Handler, OrderedConsumer, Subscription
from carebus_common.consumer.service import FETCHING, failure_policy
from carebus_common.contracts.event import MedicalEvent
from carebus_common.contracts.topics import EVENTS, EVENTS_DLQ
from carebus_processor.handlers import handle_event
from carebus_processor.settings import Settings

__all__ = ["subscribe", "subscription"]


def subscription(settings: Settings, *, handler: Handler[MedicalEvent] = handle_event) -> Subscription[MedicalEvent]:
    return Subscription(
        EVENTS.name,
        settings.consumer_group,
        MedicalEvent.model_validate_json,
        handler,
        content,
        dead_letter_topic=EVENTS_DLQ.name,
        **failure_policy(settings),
    )


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
