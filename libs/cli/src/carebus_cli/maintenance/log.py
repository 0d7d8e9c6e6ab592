"""A topic read from its beginning, and then whatever is new, without a group: nobody's offsets move."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from carebus_common.ops.lag import partitions_of

__all__ = ["GroupOffsets", "TopicLog", "open_log"]

_AT_ONCE: Final = 4000
_COORDINATOR_SECONDS: Final = 15.0


class TopicLog:
    """`begins` are the first offsets retained; `positions` the next ones to read. Methods raise KafkaError."""

    def __init__(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition], begins: dict[int, int]) -> None:
        self._consumer = consumer
        self._partitions = partitions
        self._reading = asyncio.Lock()
        self.begins = begins
        self.positions = dict(begins)

    async def more(self) -> AsyncIterator[list[ConsumerRecord]]:
        """All between the positions and the end as it is now, each partition in its order."""
        async with self._reading:
            ends = {
                partition.partition: end
                for partition, end in (await self._consumer.end_offsets(self._partitions)).items()
            }
            while behind := [one for one in self._partitions if self.positions[one.partition] < ends[one.partition]]:
                fetched = await self._consumer.getmany(*behind, timeout_ms=200, max_records=_AT_ONCE)
                for partition in behind:
                    records = fetched.get(partition, [])
                    # Past markers of transactions and what compaction took, there may be no record at all.
                    self.positions[partition.partition] = await self._consumer.position(partition)
                    if records:
                        yield records


@asynccontextmanager
async def open_log(bootstrap: str, topic: str) -> AsyncIterator[TopicLog]:
    """Raises KafkaError, LookupError if there is no such topic."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=20
    )
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await consumer.start()
        await admin.start()
        partitions = await partitions_of(admin, topic)
        if not partitions:
            raise LookupError(f"the broker has no topic {topic}")
        consumer.assign(partitions)
        begins = await consumer.beginning_offsets(partitions)
        for partition, begin in begins.items():
            consumer.seek(partition, begin)
        yield TopicLog(consumer, partitions, {partition.partition: begin for partition, begin in begins.items()})
    finally:
        await consumer.stop()
        await admin.close()


class GroupOffsets:
    """What a consumer group has committed, asked anew each time. A context manager."""

    def __init__(self, bootstrap: str, group: str, topic: str) -> None:
        self._admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        self._group = group
        self._topic = topic

    async def __aenter__(self) -> Self:
        await self._admin.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._admin.close()

    async def read(self) -> dict[int, int]:
        until = time.monotonic() + _COORDINATOR_SECONDS
        while True:
            try:
                found = await self._admin.list_consumer_group_offsets(self._group)
                break
            except GroupCoordinatorNotAvailableError:
                # A broker that no group has used yet makes its topic of offsets only now.
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.2)
        return {
            partition.partition: meta.offset
            for partition, meta in found.items()
            if partition.topic == self._topic and meta.offset >= 0
        }
