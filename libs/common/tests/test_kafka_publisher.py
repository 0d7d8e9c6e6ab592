"""The publisher on a real broker, and what it does while that is stopped, killed or confused."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from carebus_common.kafka import BrokerAway, MessageRefused, Publisher, _hash_of
from carebus_common.messages import Message, Receipt
from carebus_local.parts import Site, StackUrls, start_kafka
from carebus_local.ports import Ports
from carebus_local.state import lock
from carebus_local.supervisor import Supervisor
from carebus_local.testing import create_topic, random_name


@dataclass
class Broker:
    """A broker of our own, to be stopped and killed."""

    bootstrap: str
    supervisor: Supervisor

    def is_back(self) -> bool:
        """Whether the supervisor has started a killed broker again."""
        (status,) = self.supervisor.status()
        return status.restarts > 0 and status.health == "healthy"

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.supervisor.pid("kafka"), number)

    def is_stopped(self) -> bool:
        """Whether SIGSTOP has reached every thread."""
        threads = Path(f"/proc/{self.supervisor.pid('kafka')}/task").glob("*/stat")
        return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def broker() -> AsyncIterator[Broker]:
    with tempfile.TemporaryDirectory(prefix="carebus-publisher-") as scratch, lock(Path(scratch)):
        ports = Ports(Path(scratch))
        supervisor = Supervisor(Path(scratch))
        try:
            site = Site(Path(scratch), ports, supervisor, {}, usual_ports=False)
            await start_kafka(site)
            yield Broker(f"127.0.0.1:{site.port('kafka')}", supervisor)
        finally:
            await supervisor.stop_all()
            ports.release()


@asynccontextmanager
async def publishing(bootstrap: str, **settings: object) -> AsyncIterator[Publisher]:
    publisher = Publisher(bootstrap, client_id="test", **settings)  # type: ignore[arg-type]
    await publisher.start()
    try:
        yield publisher
    finally:
        await publisher.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def topic(stack: StackUrls) -> str:
    name = random_name("published")
    await create_topic(stack.kafka_bootstrap, name)
    return name


async def read_all(bootstrap: str, topic: str) -> list[ConsumerRecord]:
    """Every record of the topic, partition by partition."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        numbers = await consumer._client._wait_on_metadata(topic)
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        records = []
        for partition in partitions:
            while await consumer.position(partition) < ends[partition]:
                records += (await consumer.getmany(partition, timeout_ms=500)).get(partition, [])
        return records
    finally:
        await consumer.stop()


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Wait until it holds, at most `seconds`; how long that took."""
    began = time.monotonic()
    while True:
        held = condition()
        if isinstance(held, Awaitable):
            held = await held
        if held:
            return time.monotonic() - began
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.02)


def message(topic: str, key: str, value: str) -> Message:
    return Message(topic, key.encode(), value.encode(), (("ce_id", value.encode()),))


@pytest.mark.parametrize(
    ("key", "java"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_a_key_has_the_partition_the_java_client_gives_it(key: bytes, java: int) -> None:
    """The vectors of Kafka's own UtilsTest."""
    assert _hash_of(key) == java & 0x7FFFFFFF


async def test_the_receipt_names_where_the_message_is_byte_for_byte(stack: StackUrls, topic: str) -> None:
    headers = (("ce_id", b"1"), ("odd", b"\x00\xff"))
    async with publishing(stack.kafka_bootstrap) as publisher:
        receipt = await publisher.publish(Message(topic, "päti/ent".encode(), b"\x00\xffvalue", headers))
    (record,) = await read_all(stack.kafka_bootstrap, topic)
    assert (record.partition, record.offset) == (receipt.partition, receipt.offset)
    assert (record.key, record.value, record.headers) == ("päti/ent".encode(), b"\x00\xffvalue", headers)


async def test_messages_of_one_key_are_stored_in_the_order_of_the_calls(stack: StackUrls, topic: str) -> None:
    async with publishing(stack.kafka_bootstrap, topics=[topic]) as publisher:
        calls = [
            asyncio.create_task(publisher.publish(message(topic, f"p{number % 7}", str(number))))
            for number in range(2000)
        ]
        receipts = await asyncio.gather(*calls)
    assert len({(receipt.partition, receipt.offset) for receipt in receipts}) == 2000
    for key in range(7):
        mine = [receipt.offset for number, receipt in enumerate(receipts) if number % 7 == key]
        assert mine == sorted(mine)


async def test_each_of_many_messages_gets_its_own_receipt_in_order(stack: StackUrls, topic: str) -> None:
    many = [message(topic, f"p{number % 50}", str(number)) for number in range(5000)]
    async with publishing(stack.kafka_bootstrap, max_messages=400) as publisher:
        outcomes = await publisher.publish_each(many)
    stored = {
        (record.partition, record.offset): record.value for record in await read_all(stack.kafka_bootstrap, topic)
    }
    assert len(stored) == 5000
    for sent, outcome in zip(many, outcomes, strict=True):
        assert isinstance(outcome, Receipt)
        assert stored[outcome.partition, outcome.offset] == sent.value
    mine = [outcome.offset for outcome in outcomes[::50] if isinstance(outcome, Receipt)]
    assert mine == sorted(mine)


async def test_a_message_over_the_limit_is_refused_and_the_largest_allowed_is_stored(
    stack: StackUrls, topic: str
) -> None:
    async with publishing(stack.kafka_bootstrap) as publisher:
        with pytest.raises(MessageRefused):
            await publisher.publish(message(topic, "p", "x" * 1024 * 1024))
        assert await publisher.publish(message(topic, "p", "x" * 500_000))
        assert await publisher.publish(message(topic, "p", "x" * 520_000))
        assert publisher.rebuilds == 0


async def test_a_message_the_broker_refuses_is_refused_alone(stack: StackUrls) -> None:
    """Its batch is refused as a whole, and its sequence numbers must be taken back or the producer is lost."""
    topic = random_name("small")
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "2000"})])
    await admin.close()
    async with publishing(stack.kafka_bootstrap, topics=[topic]) as publisher:
        many = [message(topic, "p", "x" * (3000 if number == 3 else 500)) for number in range(6)]
        for _ in range(2):
            outcomes = await publisher.publish_each(many)
            assert [type(outcome) for outcome in outcomes] == [Receipt] * 3 + [MessageRefused] + [Receipt] * 2
            offsets = [outcome.offset for outcome in outcomes if isinstance(outcome, Receipt)]
            assert offsets == sorted(offsets)
        assert publisher.rebuilds == 0


async def test_without_a_broker_starting_works_and_publishing_fails_at_once() -> None:
    async with publishing("127.0.0.1:1") as publisher:
        assert not publisher.available
        began = time.monotonic()
        with pytest.raises(BrokerAway):
            await publisher.publish(message("any", "p", "1"))
        assert time.monotonic() - began < 0.1
        outcomes = await publisher.publish_each([message("any", "p", "1")] * 3)
        assert [type(outcome) for outcome in outcomes] == [BrokerAway] * 3


async def test_a_topic_that_does_not_exist_hurts_nobody_else(stack: StackUrls, topic: str) -> None:
    async with publishing(
        stack.kafka_bootstrap, topics=["never-created"], deadline=timedelta(seconds=0.5)
    ) as publisher:
        with pytest.raises(BrokerAway):
            await publisher.publish(message("never-created", "p", "1"))
        assert await publisher.publish(message(topic, "p", "1"))
        assert publisher.rebuilds == 0


async def test_stopping_answers_what_is_in_flight(stack: StackUrls, topic: str) -> None:
    publisher = Publisher(stack.kafka_bootstrap, client_id="test", topics=[topic])
    await publisher.start()
    calls = [asyncio.create_task(publisher.publish(message(topic, "p", str(number)))) for number in range(100)]
    await asyncio.sleep(0)
    await publisher.stop()
    assert all(isinstance(receipt, Receipt) for receipt in await asyncio.gather(*calls))
    with pytest.raises(BrokerAway):
        await publisher.publish(message(topic, "p", "late"))


async def test_a_cancelled_call_leaves_the_publisher_as_it_was(stack: StackUrls, topic: str) -> None:
    async with publishing(stack.kafka_bootstrap, topics=[topic]) as publisher:
        call = asyncio.create_task(publisher.publish(message(topic, "p", "cancelled")))
        await asyncio.sleep(0)
        call.cancel()
        assert await publisher.publish(message(topic, "p", "next"))
        assert publisher._messages == 0
        assert publisher._bytes == 0


async def test_out_of_sequence_the_producer_is_replaced(stack: StackUrls, topic: str) -> None:
    """aiokafka 1017: the fatal error of an idempotent producer would be repeated for ever."""
    async with publishing(stack.kafka_bootstrap, topics=[topic]) as publisher:
        first = await publisher.publish(message(topic, "p", "1"))
        assert publisher._session is not None
        publisher._session.take_back(TopicPartition(topic, first.partition), -7)
        with pytest.raises(BrokerAway, match="OutOfOrderSequence"):
            await publisher.publish(message(topic, "p", "2"))
        assert await until(lambda: publisher.available, 2) < 2
        assert (await publisher.publish(message(topic, "p", "3"))).offset == first.offset + 1
        assert publisher.rebuilds == 1


async def test_a_producer_whose_sender_died_is_replaced(stack: StackUrls, topic: str) -> None:
    async with publishing(stack.kafka_bootstrap, topics=[topic]) as publisher:
        assert publisher._session is not None
        publisher._session.sender.cancel()
        await until(lambda: publisher.rebuilds == 1, 2)
        await until(lambda: publisher.available, 2)
        assert await publisher.publish(message(topic, "p", "1"))


async def test_while_the_broker_is_stopped_nothing_is_acknowledged_or_sent_later(broker: Broker) -> None:
    topic = random_name("stopped")
    await create_topic(broker.bootstrap, topic)
    async with publishing(broker.bootstrap, topics=[topic], max_messages=100) as publisher:
        await publisher.publish(message(topic, "p", "before"))
        broker.signal(signal.SIGSTOP)
        try:
            await until(broker.is_stopped, 5)
            began = time.monotonic()
            in_socket = asyncio.create_task(publisher.publish(message(topic, "p", "in the socket")))
            await asyncio.sleep(0.05)
            buffered = [asyncio.create_task(publisher.publish(message(topic, "p", f"late {n}"))) for n in range(99)]
            await asyncio.sleep(0)
            with pytest.raises(BrokerAway, match="too many"):
                await publisher.publish(message(topic, "p", "beyond the bound"))
            answers = await asyncio.gather(in_socket, *buffered, return_exceptions=True)
            assert time.monotonic() - began < 2
            assert all(isinstance(answer, BrokerAway) for answer in answers)
            began = time.monotonic()
            with pytest.raises(BrokerAway):
                await publisher.publish(message(topic, "p", "at once"))
            assert time.monotonic() - began < 0.1
            assert not publisher.available
        finally:
            broker.signal(signal.SIGCONT)
        assert await until(lambda: publisher.available, 10) < 10
        await publisher.publish(message(topic, "p", "after"))
    values = [record.value for record in await read_all(broker.bootstrap, topic)]
    assert [value for value in values if value != b"in the socket"] == [b"before", b"after"]


async def test_a_killed_broker_that_returns_finds_nothing_lost_and_nothing_twice(broker: Broker) -> None:
    topic = random_name("killed")
    await create_topic(broker.bootstrap, topic)
    acknowledged: dict[str, Receipt] = {}
    refused: set[str] = set()
    stop = asyncio.Event()
    slowest = 0.0

    async def sender(publisher: Publisher, name: int) -> None:
        nonlocal slowest
        number = 0
        while not stop.is_set():
            value = f"{name}-{number}"
            number += 1
            began = time.monotonic()
            try:
                acknowledged[value] = await publisher.publish(message(topic, f"p{name}", value))
            except BrokerAway:
                refused.add(value)
                await asyncio.sleep(0.05)
            slowest = max(slowest, time.monotonic() - began)

    async with publishing(broker.bootstrap, topics=[topic]) as publisher:
        senders = [asyncio.create_task(sender(publisher, name)) for name in range(20)]
        await until(lambda: len(acknowledged) > 500, 10)
        broker.signal(signal.SIGKILL)
        await until(lambda: len(refused) > 20, 5)
        await until(broker.is_back, 60)
        back = len(acknowledged)
        assert await until(lambda: len(acknowledged) > back + 500, 10) < 10
        stop.set()
        await asyncio.gather(*senders)
    assert slowest < 2
    records = await read_all(broker.bootstrap, topic)
    stored = {(record.partition, record.offset): record.value.decode() for record in records}
    for value, receipt in acknowledged.items():
        assert stored[receipt.partition, receipt.offset] == value
    assert len(set(stored.values())) == len(stored)
    for name in range(20):
        mine = [int(value.split("-")[1]) for _, value in sorted(stored.items()) if value.startswith(f"{name}-")]
        assert mine == sorted(mine)


async def test_an_idle_publisher_notices_that_the_broker_went_and_that_it_came_back(broker: Broker) -> None:
    topic = random_name("idle")
    await create_topic(broker.bootstrap, topic)
    async with publishing(broker.bootstrap, topics=[topic]) as publisher:
        assert publisher.available
        await broker.supervisor.stop("kafka")
        try:
            await until(lambda: not publisher.available, 6)
            with pytest.raises(BrokerAway):
                await publisher.publish(message(topic, "p", "1"))
        finally:
            await broker.supervisor.start_again("kafka")
        assert await until(lambda: publisher.available, 10) < 10
        assert await publisher.publish(message(topic, "p", "2"))
