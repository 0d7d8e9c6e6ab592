"""What parked patients cost the others: `python bench/parking/others.py [EVENTS [RUNS]]`.

Two kinds of runs in turn over the same events of 1,000 patients: with nobody parked, and with one patient in a hundred
parked behind a dead letter, so that each of their events joins a queue in the store. Told are the others' events: how
many a second when the topic is full, and how long each takes at a steady rate, from its record's timestamp to the
broker's acknowledgement of what it emits.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from faststream import AckPolicy
from faststream.kafka import KafkaMessage

from carebus_common import logging, mongo
from carebus_common.consumer import Change, DeadLetter, Delivery, OrderedConsumer, State, Store, Subscription
from carebus_common.consumer.service import FETCHING, consume, kafka_broker
from carebus_common.contracts.event import MedicalEvent, encode
from carebus_common.contracts.topics import EVENTS_DLQ, EVENTS_PROCESSED
from carebus_common.kafka import Publisher
from carebus_common.messages import Message
from carebus_common.settings import KafkaSettings, LogSettings, MongoSettings
from carebus_local import topics
from carebus_local.parts import StackUrls
from carebus_local.testing import create_topic, random_name, stack_for_tests
from carebus_processor.handlers import handle_event
from carebus_processor.subscribers import content

PATIENTS = 1000
PARKED = frozenset(f"p{n}" for n in range(0, PATIENTS, 100))
STEADY_RATE = 500
STEADY_SECONDS = 10


async def main(events: int, runs: int) -> None:
    logging.configure(LogSettings(log_level="ERROR"), service="bench", stream=io.StringIO())
    figures: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    async with stack_for_tests() as stack:
        await topics.apply(stack.kafka_bootstrap)
        for number in range(runs + 1):
            for parked in (False, True):
                found = await measure(stack, events, parked=parked)
                if number:
                    figures[parked].append(found)
                    print("parked" if parked else "none  ", {k: round(v, 1) for k, v in found.items()}, file=sys.stderr)
    print("| | others' events/s | p50 ms | p99 ms |")
    print("|---|---|---|---|")
    for parked, found in figures.items():
        row = [statistics.median(one[name] for one in found) for name in ("perSecond", "p50", "p99")]
        kind = "1 % of patients parked" if parked else "nobody parked"
        print(f"| {kind} | {row[0]:.0f} | {row[1]:.1f} | {row[2]:.1f} |")
    for name in ("perSecond", "p99"):
        ratios = [b[name] / a[name] for a, b in zip(figures[False], figures[True], strict=True)]
        print(f"\nratio of {name}: median {statistics.median(ratios):.3f}, of {min(ratios):.3f} to {max(ratios):.3f}")


async def measure(stack: StackUrls, events: int, *, parked: bool) -> dict[str, float]:
    topic = random_name("bench")
    await create_topic(stack.kafka_bootstrap, topic, 12)
    publisher = Publisher(
        stack.kafka_bootstrap,
        client_id="bench",
        deadline=timedelta(seconds=30),
        topics=[topic, EVENTS_PROCESSED.name, EVENTS_DLQ.name],
    )
    await publisher.start()
    try:
        async with consuming(stack, topic, publisher, parked=parked) as settled:
            # Whoever is to be parked is parked before anything is measured.
            await publish(publisher, topic, PATIENTS)
            await until(settled, PATIENTS)
            settled.clear()
            for first in range(0, events, 5000):
                await publish(publisher, topic, min(5000, events - first))
            await until(settled, events)
            others = [at for at, _, patient in settled if patient not in PARKED]
            throughput = len(others) / (max(others) - min(others))
            settled.clear()
            await steadily(publisher, topic)
            await until(settled, STEADY_RATE * STEADY_SECONDS)
            waits = sorted(at * 1000 - sent for at, sent, patient in settled if patient not in PARKED)
        return {
            "perSecond": throughput,
            "p50": waits[len(waits) // 2],
            "p99": waits[len(waits) * 99 // 100],
        }
    finally:
        await publisher.stop()


@asynccontextmanager
async def consuming(
    stack: StackUrls, topic: str, publisher: Publisher, *, parked: bool
) -> AsyncIterator[list[tuple[float, float, str]]]:
    """A consumer; gives the list of (when settled, seconds; record's timestamp, ms; patient)."""
    settled: list[tuple[float, float, str]] = []

    def handle(state: State | None, delivery: Delivery[MedicalEvent]) -> Any:
        if parked and delivery.event.patient_id in PARKED:
            raise DeadLetter("parked for the measurement")
        change = handle_event(state, delivery)
        assert isinstance(change, Change)
        return change

    client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="bench")
    subscription = Subscription(
        topic, topic, MedicalEvent.model_validate_json, handle, content, dead_letter_topic=EVENTS_DLQ.name
    )
    consumer = OrderedConsumer(subscription, Store(client[topic], inbox="inbox", patients="patients"), publisher)
    original = consumer._published

    def noted(group: Any) -> None:
        now = time.time()
        settled.extend((now, one.record.timestamp, (one.record.key or b"").decode()) for one in group)
        original(group)

    consumer._emitter._done = noted
    broker = kafka_broker(KafkaSettings(kafka_bootstrap=stack.kafka_bootstrap), client_id="bench")

    @broker.subscriber(  # type: ignore[untyped-decorator]
        topic, group_id=topic, ack_policy=AckPolicy.MANUAL, listener=consumer, **FETCHING
    )
    async def records(message: KafkaMessage) -> None:
        consumer.accept(message.raw_message)

    stop = asyncio.Event()
    running = asyncio.create_task(consume(broker, consumer, stop))
    try:
        yield settled
    finally:
        stop.set()
        await running
        await client.drop_database(topic)
        await client.close()


async def publish(publisher: Publisher, topic: str, count: int) -> None:
    now = datetime.now(UTC)
    messages = []
    for n in range(count):
        event = MedicalEvent(
            event_id=uuid4(),
            organization_id="bench",
            patient_id=f"p{n % PATIENTS}",
            type="vital-signs",
            ts=now,
            received_at=now,
            data={"heartRate": 60 + n % 60, "note": "x" * 200},
        )
        messages.append(Message(topic, event.patient_id.encode(), encode(event)))
    await publisher.publish_each(messages)


async def steadily(publisher: Publisher, topic: str) -> None:
    began = time.monotonic()
    tick = 0.02
    for number in range(int(STEADY_SECONDS / tick)):
        await publish(publisher, topic, int(STEADY_RATE * tick))
        await asyncio.sleep(max(0.0, began + (number + 1) * tick - time.monotonic()))


async def until(settled: list[tuple[float, float, str]], count: int) -> None:
    async with asyncio.timeout(600):
        while len(settled) < count:
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(
        main(
            int(sys.argv[1]) if len(sys.argv) > 1 else 20_000,
            int(sys.argv[2]) if len(sys.argv) > 2 else 3,
        )
    )
