"""A consumer on real parts: its own topics, group and database, and events to feed it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition
from faststream import AckPolicy
from faststream.kafka import KafkaMessage

from carebus_common import mongo
from carebus_common.consumer import (
    Change,
    Delivery,
    Limits,
    OrderedConsumer,
    Recorder,
    RetryPolicy,
    State,
    Store,
    Subscription,
)
from carebus_common.consumer.service import FETCHING, consume, kafka_broker
from carebus_common.contracts.event import MedicalEvent, encode
from carebus_common.kafka import Publisher
from carebus_common.messages import Message, Receipt
from carebus_common.settings import KafkaSettings, MongoSettings
from carebus_local.parts import StackUrls
from carebus_local.testing import create_topic, random_name

Handle = Callable[[State | None, Delivery[MedicalEvent]], Change | Awaitable[Change]]


def event(patient: str = "p1", *, event_id: UUID | None = None, org: str = "org", **data: Any) -> MedicalEvent:
    now = datetime.now(UTC)
    return MedicalEvent(
        event_id=event_id or uuid4(),
        organization_id=org,
        patient_id=patient,
        type="note",
        ts=now,
        received_at=now,
        data=data,
    )


def appending(out: str) -> Handle:
    """Remembers each event's `n` in the patient's state and emits it."""

    def handle(state: State | None, delivery: Delivery[MedicalEvent]) -> Change:
        got = delivery.event
        seen = [*(state["seen"] if state else []), got.data.get("n")]
        value = msgspec.json.encode({"eventId": str(got.event_id), "n": got.data.get("n")})
        return Change(
            row={"data": got.data},
            state={"seen": seen},
            messages=(Message(out, got.patient_id.encode(), value),),
        )

    return handle


# Retries that a test can wait for.
QUICK = RetryPolicy(base=timedelta(milliseconds=100), jitter=0)


async def eventually(check: Callable[[], Awaitable[bool]], *, within: float = 30, what: str = "the condition") -> None:
    async with asyncio.timeout(within):
        while not await check():
            await asyncio.sleep(0.05)


@dataclass
class World:
    stack: StackUrls
    topic: str
    out: str
    group: str
    database: mongo.Database
    publisher: Publisher
    limits: Limits = field(
        default_factory=lambda: Limits(
            store_retry=timedelta(milliseconds=100),
            look_interval=timedelta(milliseconds=50),
            count_interval=timedelta(milliseconds=200),
        )
    )
    # Fields of the subscription beside its topic, group and functions.
    subscription: dict[str, Any] = field(default_factory=lambda: {"retry": QUICK})

    @property
    def dlq(self) -> str:
        return f"{self.topic}-dlq"

    async def send(self, *events: MedicalEvent) -> list[Receipt]:
        """Publish in order; one receipt each."""
        return await self.send_raw(
            *(
                Message(self.topic, e.patient_id.encode(), encode(e), (("organizationId", e.organization_id.encode()),))
                for e in events
            )
        )

    async def send_raw(self, *messages: Message) -> list[Receipt]:
        receipts = []
        for outcome in await self.publisher.publish_each(messages):
            assert isinstance(outcome, Receipt), outcome
            receipts.append(outcome)
        return receipts

    @asynccontextmanager
    async def consuming(
        self,
        handler: Handle | None = None,
        *,
        publisher: Any = None,
        store: Store | None = None,
        recorder: Recorder | None = None,
    ) -> AsyncIterator[OrderedConsumer[MedicalEvent]]:
        """A replica, drained at the end."""
        stop = asyncio.Event()
        own = Publisher(self.stack.kafka_bootstrap, client_id="t", deadline=timedelta(seconds=10), topics=[self.out])
        async with AsyncExitStack() as cleanup:
            await own.start()
            cleanup.push_async_callback(own.stop)
            consumer = OrderedConsumer(
                Subscription(
                    self.topic,
                    self.group,
                    MedicalEvent.model_validate_json,
                    handler or appending(self.out),
                    lambda e: msgspec.json.encode((e.patient_id, e.type, e.ts, e.data), order="deterministic"),
                    dead_letter_topic=self.dlq,
                    **self.subscription,
                ),
                store or self.store(),
                publisher or own,
                limits=self.limits,
                recorder=recorder,
            )
            broker = kafka_broker(KafkaSettings(kafka_bootstrap=self.stack.kafka_bootstrap), client_id="t")

            @broker.subscriber(  # type: ignore[untyped-decorator]
                self.topic,
                group_id=self.group,
                ack_policy=AckPolicy.MANUAL,
                listener=consumer,
                **FETCHING,
            )
            async def records(message: KafkaMessage) -> None:
                consumer.accept(message.raw_message)

            task = asyncio.create_task(consume(broker, consumer, stop))
            try:
                yield consumer
            finally:
                stop.set()
                await asyncio.wait_for(task, 20)

    def store(self) -> Store:
        return Store(self.database, inbox="inbox", patients="patients")

    async def seen(self, patient: str = "p1", org: str = "org") -> list[Any]:
        row = await self.database["patients"].find_one({"_id": f"{org}/{patient}"})
        return row["state"]["seen"] if row and row["state"] else []

    async def inbox_count(self) -> int:
        return await self.database["inbox"].count_documents({})

    async def wait_for_inbox(self, count: int, *, within: float = 30) -> None:
        async def reached() -> bool:
            return await self.inbox_count() >= count

        await eventually(reached, within=within)

    async def committed(self) -> int:
        """The sum of the group's committed offsets."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.stack.kafka_bootstrap, group_id=self.group, enable_auto_commit=False
        )
        await consumer.start()
        try:
            partitions = consumer.partitions_for_topic(self.topic) or set()
            if not partitions:
                await consumer._client.force_metadata_update()
            total = 0
            for partition in range(self.partitions):
                total += await consumer.committed(TopicPartition(self.topic, partition)) or 0
            return total
        finally:
            await consumer.stop()

    partitions: int = 4

    async def emitted(self, count: int, *, within: float = 30) -> list[dict[str, Any]]:
        """At least `count` messages of the out topic, in each partition's order."""
        found = await self.records_of(self.out, count, within=within)
        return [{**msgspec.json.decode(r.value), "key": r.key.decode()} for r in found]

    async def records_of(self, topic: str, count: int, *, within: float = 30) -> list[Any]:
        """At least `count` records of a topic, in each partition's order."""
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=self.stack.kafka_bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        found: list[Any] = []
        try:
            async with asyncio.timeout(within):
                while len(found) < count:
                    for records in (await consumer.getmany(timeout_ms=200)).values():
                        found += records
            return found
        finally:
            await consumer.stop()

    async def rows(self, collection: str, **query: Any) -> list[dict[str, Any]]:
        return await self.database[collection].find(query).to_list()

    async def ask(self, action: str, *letters: dict[str, Any]) -> None:
        """Ask the owners to redrive or discard dead letters, as the ops API does."""
        for letter in letters:
            await self.database["dead_letter_requests"].insert_one(
                {
                    "_id": str(uuid4()),
                    "topic": letter["source"]["topic"],
                    "partition": letter["source"]["partition"],
                    "action": action,
                    "deadLetterIds": [letter["_id"]],
                    "by": "an engineer",
                    "organizationId": "carebus",
                    "reason": "it is mended",
                    "requestedAt": datetime.now(UTC),
                }
            )

    async def letters(self, count: int = 1, *, within: float = 20, **query: Any) -> list[dict[str, Any]]:
        """At least `count` dead letters, waited for."""
        wanted = {"status": "open", **query}

        async def there() -> bool:
            return await self.database["dead_letters"].count_documents(wanted) >= count

        await eventually(there, within=within, what="the dead letters")
        return await self.rows("dead_letters", **wanted)

    async def unparked(self, *, within: float = 20) -> None:
        """Wait until nobody is parked and nothing waits."""

        async def nobody() -> bool:
            for name in ("parked_patients", "parked_events", "dead_letter_requests"):
                if await self.database[name].count_documents({}):
                    return False
            return not [row for row in await self.rows("patients") if row["parked"]]

        await eventually(nobody, within=within, what="nobody is parked")


@pytest_asyncio.fixture(loop_scope="session")
async def world(stack: StackUrls) -> AsyncIterator[World]:
    name = random_name("consumer")
    await create_topic(stack.kafka_bootstrap, name, 4)
    await create_topic(stack.kafka_bootstrap, f"{name}-out", 4)
    await create_topic(stack.kafka_bootstrap, f"{name}-dlq", 4)
    client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="tests")
    publisher = Publisher(stack.kafka_bootstrap, client_id="sender", deadline=timedelta(seconds=10), topics=[name])
    await publisher.start()
    yield World(stack, name, f"{name}-out", name, client[name], publisher)
    await publisher.stop()
    await client.drop_database(name)
    await client.close()


@pytest.fixture
def quiet() -> Iterator[None]:
    """Without the warnings of a thousand failures."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def of_patient(messages: Iterable[dict[str, Any]], patient: str) -> list[Any]:
    return [message["n"] for message in messages if message["key"] == patient]
