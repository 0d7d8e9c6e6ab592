"""How far a group is behind: the broker's own numbers, asked with a connection for each answer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from carebus_common.logging import get_logger

__all__ = ["Lag", "PartitionLag", "partitions_of"]

log = get_logger(__name__)

# Many may look at once; an answer this old still tells what they ask.
_FRESH: Final = 1.0
_PATIENCE: Final = 3.0


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """`committed` is None before the group's first commit; then everything there is counts as lag."""

    partition: int
    committed: int | None
    end: int
    lag: int


class Lag:
    """One group's lag on one topic, at most a second old."""

    def __init__(self, bootstrap: str, group: str, topic: str) -> None:
        self._bootstrap = bootstrap
        self._group = group
        self._topic = topic
        self._lock = asyncio.Lock()
        self._known: list[PartitionLag] | None = None
        self._fresh_until = float("-inf")

    async def read(self) -> list[PartitionLag] | None:
        """By partition; None while the broker is away or does not answer in time."""
        async with self._lock:
            if time.monotonic() >= self._fresh_until:
                try:
                    async with asyncio.timeout(_PATIENCE):
                        self._known = await self._ask()
                except (KafkaError, OSError, TimeoutError) as error:
                    log.info("lag-unknown", group=self._group, error=type(error).__name__)
                    self._known = None
                self._fresh_until = time.monotonic() + _FRESH
            return self._known

    async def _ask(self) -> list[PartitionLag]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, enable_auto_commit=False)
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        try:
            await consumer.start()
            await admin.start()
            partitions = await partitions_of(admin, self._topic)
            begins = await consumer.beginning_offsets(partitions)
            ends = await consumer.end_offsets(partitions)
            marks = await admin.list_consumer_group_offsets(self._group)
        finally:
            await consumer.stop()
            await admin.close()
        found = []
        for partition in partitions:
            mark = marks.get(partition)
            committed = mark.offset if mark is not None and mark.offset >= 0 else None
            lag = max(0, ends[partition] - (begins[partition] if committed is None else committed))
            found.append(PartitionLag(partition.partition, committed, ends[partition], lag))
        return found


async def partitions_of(admin: AIOKafkaAdminClient, topic: str) -> list[TopicPartition]:
    """The topic's partitions in their order, none if there is no such topic. Raises KafkaError."""
    # A broker may create a topic that one asks for by name.
    if topic not in await admin.list_topics():
        return []
    (described,) = await admin.describe_topics([topic])
    return [TopicPartition(topic, number) for number in sorted(each["partition"] for each in described["partitions"])]
