"""What claims consumes. FastStream fetches; the ordered runtime decides when an offset is committed."""

from __future__ import annotations

import msgspec
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage

from carebus_claims.handlers import record_history
from carebus_claims.settings import Settings
from carebus_common.consumer import OrderedConsumer, Subscription
from carebus_common.consumer.service import FETCHING, failure_policy
from carebus_common.contracts.processed import ProcessedEvent
from carebus_common.contracts.topics import CLAIMS_DLQ

__all__ = ["subscribe", "subscription"]


def subscription(settings: Settings) -> Subscription[ProcessedEvent]:
    return Subscription(
        settings.claims_topic,
        settings.claims_group,
        ProcessedEvent.model_validate_json,
        record_history,
        content,
        dead_letter_topic=CLAIMS_DLQ.name,
        **failure_policy(settings),
    )


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


def content(event: ProcessedEvent) -> bytes:
    """What two copies have in common: the event. What the processor made of it may differ when it is rebuilt."""
    return msgspec.json.encode((event.patient_id, event.type, event.ts, event.data), order="deterministic")
