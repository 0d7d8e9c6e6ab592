"""What claims consumes. FastStream fetches; the ordered runtime decides when an offset is committed."""

from __future__ import annotations

import msgspec
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage

from carebus_claims.handlers import record_history
from carebus_common.consumer import OrderedConsumer, Subscription
from carebus_common.consumer.service import FETCHING
from carebus_common.contracts.processed import ProcessedEvent
from carebus_common.http import Unhealthy
from carebus_common.http.health import Check

__all__ = ["consumer_check", "subscribe", "subscription"]


def subscription(group: str, topic: str) -> Subscription[ProcessedEvent]:
    return Subscription(topic, group, decode, record_history, content)


def subscribe(broker: KafkaBroker, consumer: OrderedConsumer[ProcessedEvent]) -> None:
    """Let `broker` feed `consumer`."""
    what = consumer.subscription

    @broker.subscriber(  # type: ignore[untyped-decorator]
        what.topic,
        group_id=what.group,
        ack_policy=AckPolicy.MANUAL,
        listener=consumer,
        **FETCHING,
    )
    async def processed_events(message: KafkaMessage) -> None:
        consumer.accept(message.raw_message)


def decode(value: bytes) -> ProcessedEvent:
    return ProcessedEvent.model_validate(msgspec.json.decode(value))


def consumer_check(consumer: OrderedConsumer[ProcessedEvent]) -> Check:
    """Healthy while records can flow; a stopped patient needs a person and shows too."""

    async def check() -> None:
        status = consumer.status()
        if status.store_away:
            raise Unhealthy("waits for the store")
        if status.stopped_patients:
            raise Unhealthy(f"stopped patients: {status.stopped_patients}")

    return check


def content(event: ProcessedEvent) -> bytes:
    """What two copies have in common: the event. What the processor made of it may differ when it is rebuilt."""
    return msgspec.json.encode((event.patient_id, event.type, event.ts, event.data), order="deterministic")
