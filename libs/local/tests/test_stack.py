from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from pymongo import AsyncMongoClient
from redis.asyncio import Redis

from carebus_local.parts import StackUrls
from carebus_local.testing import create_topic, random_name


async def test_the_stack_gives_a_broker_that_keeps_what_it_acknowledged(stack: StackUrls) -> None:
    topic = random_name("stack")
    await create_topic(stack.kafka_bootstrap, topic, partitions=3)
    async with AIOKafkaProducer(
        bootstrap_servers=stack.kafka_bootstrap, acks="all", enable_idempotence=True
    ) as producer:
        await producer.send_and_wait(topic, b"value", key=b"key", partition=2)
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=stack.kafka_bootstrap, group_id=topic, auto_offset_reset="earliest"
    ) as consumer:
        record = await consumer.getone()
    assert (record.partition, record.offset, record.key, record.value) == (2, 0, b"key", b"value")


async def test_the_stack_gives_a_store_with_transactions(stack: StackUrls) -> None:
    async with AsyncMongoClient[dict[str, Any]](stack.mongo_url) as client:
        rows = client[random_name("stack")]["rows"]
        await rows.insert_one({"_id": "before"})
        async with client.start_session() as session:
            async with await session.start_transaction():
                await rows.insert_one({"_id": "dropped"}, session=session)
                await session.abort_transaction()
            async with await session.start_transaction():
                await rows.insert_one({"_id": "kept"}, session=session)
        assert [row["_id"] async for row in rows.find().sort("_id")] == ["before", "kept"]


async def test_the_stack_gives_a_redis(stack: StackUrls) -> None:
    async with Redis.from_url(stack.redis_url) as client:
        name = random_name("stack")
        assert await client.incr(name) == 1
