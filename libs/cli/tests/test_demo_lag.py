import asyncio

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.structs import OffsetAndMetadata

from carebus_cli.demo.lag import Lag, LagReader
from carebus_local.parts import StackUrls
from carebus_local.testing import create_topic, random_name


async def read_soon(reader: LagReader) -> dict[str, Lag]:
    """A broker that never had a group needs a moment to make the topic for their offsets."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await reader.read()
            except GroupCoordinatorNotAvailableError:
                await asyncio.sleep(0.1)


async def test_the_lag_is_what_the_topic_has_and_the_group_has_not_committed(stack: StackUrls) -> None:
    topic, group = random_name("lag"), random_name("group")
    await create_topic(stack.kafka_bootstrap, topic, 3)
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka_bootstrap)
    await producer.start()
    for partition in (0, 0, 0, 2):
        await producer.send_and_wait(topic, b"x", partition=partition)
    await producer.stop()
    async with LagReader(stack.kafka_bootstrap, {group: topic}) as reader:
        assert await read_soon(reader) == {group: Lag(committed=0, behind=4)}

        consumer = AIOKafkaConsumer(bootstrap_servers=stack.kafka_bootstrap, group_id=group, enable_auto_commit=False)
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.start()
        await consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(2, "")})
        await consumer.stop()
        assert await reader.read() == {group: Lag(committed=2, behind=2)}
