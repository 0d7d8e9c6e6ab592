"""An ordered consumer on FastStream's Kafka broker: how a service subscribes, runs and stops.

FastStream fetches batches of raw records and calls the subscriber; acknowledgement is manual, and it is the
runtime that commits offsets (ADR 0003).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError
from faststream import StreamMessage
from faststream.kafka import KafkaBroker
from faststream.kafka.message import KafkaAckableMessage
from faststream.kafka.subscriber.usecase import LogicSubscriber

from carebus_common.consumer.gauges import Gauges
from carebus_common.consumer.retry import RetryPolicy
from carebus_common.consumer.runtime import OrderedConsumer
from carebus_common.http.health import Check, Unhealthy
from carebus_common.logging import get_logger
from carebus_common.settings import ConsumerSettings, KafkaSettings

__all__ = ["FETCHING", "consume", "consumer_check", "failure_policy", "kafka_broker"]

log = get_logger(__name__)


async def _records_as_they_are(records: tuple[ConsumerRecord, ...]) -> KafkaAckableMessage:
    """FastStream's parser for us: it must neither decode values nor fail on headers that are no text.

    The message has no consumer, so that an acknowledgement from anywhere but the runtime fails loudly.
    """
    return KafkaAckableMessage(raw_message=records, body=b"", consumer=None)


async def _as_it_is(message: StreamMessage[Any]) -> Any:
    return message.raw_message


# How every subscriber fetches; it adds topic, group, listener and `ack_policy=AckPolicy.MANUAL`. An idle poll
# sleeps for `batch_timeout_ms`, so that bounds the latency FastStream adds.
FETCHING: Final[dict[str, Any]] = {
    "batch": True,
    "batch_timeout_ms": 10,
    "max_records": 4000,
    "auto_offset_reset": "earliest",
    "session_timeout_ms": 10_000,
    "heartbeat_interval_ms": 3_000,
    "parser": _records_as_they_are,
    "decoder": _as_it_is,
}


def failure_policy(settings: ConsumerSettings) -> dict[str, Any]:
    """What a `Subscription` is given of the settings."""
    return {
        "retry": RetryPolicy(base=settings.retry_base, retries=settings.retries, deadline=settings.retry_deadline),
        "handler_deadline": settings.handler_deadline,
        "crash_limit": settings.crash_limit,
    }


def kafka_broker(settings: KafkaSettings, *, client_id: str) -> KafkaBroker:
    """FastStream's broker; it connects when started. New topics are noticed within ten seconds."""
    logger = logging.getLogger("faststream.kafka")
    # It warns at each start that it will not create topics, and tells of every assignment: noise.
    logger.setLevel(logging.ERROR)
    return KafkaBroker(
        settings.kafka_bootstrap,
        client_id=client_id,
        metadata_max_age_ms=10_000,
        consumer_only=True,
        logger=logger,
        log_level=logging.DEBUG,
    )


async def consume(broker: KafkaBroker, consumer: OrderedConsumer[Any], stop: asyncio.Event) -> None:
    """Run `consumer` until `stop` is set, then drain it and leave the group.

    Waits for a broker that is away, at the start as later. Raises only what should never happen.
    """
    gauges = Gauges(consumer)
    async with asyncio.TaskGroup() as tasks:
        runtime = tasks.create_task(consumer.run())
        telling = tasks.create_task(gauges.run())
        stopping = tasks.create_task(stop.wait())
        while not stop.is_set() and not await _started(broker):
            await asyncio.wait([stopping], timeout=1)
        for subscriber in broker.subscribers:
            if isinstance(subscriber, LogicSubscriber) and subscriber.consumer is not None:
                consumer.attach(subscriber.consumer)
                gauges.kafka = subscriber.consumer
        await stopping
        await consumer.drain()
        telling.cancel()
        await broker.stop()
        runtime.cancel()


async def _started(broker: KafkaBroker) -> bool:
    try:
        await broker.start()
    except KafkaError as error:
        log.warning("broker-away", error=type(error).__name__)
        await broker.stop()
        return False
    return True


def consumer_check(consumer: OrderedConsumer[Any]) -> Check:
    """For `/health`: healthy while records can flow.

    Parked patients are no reason to be unhealthy, since everybody else flows; one that cannot be parked is, and so is
    a consumer that stopped itself.
    """

    async def check() -> None:
        status = consumer.status()
        if status.store_away:
            raise Unhealthy("waits for the store")
        if status.broker_away or not status.connected:
            raise Unhealthy("waits for the broker")
        if status.stopped is not None:
            raise Unhealthy(f"stopped: {status.stopped}; after the fix, `carebus consumers resume`")
        if status.parked_full:
            raise Unhealthy(f"too many events are parked: {status.parked_events}")
        if status.stopped_patients:
            raise Unhealthy(f"stopped patients: {status.stopped_patients}")

    return check
