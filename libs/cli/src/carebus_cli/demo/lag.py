"""How far the consumer groups are behind, as Kafka knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from carebus_common.contracts.topics import EVENTS, EVENTS_PROCESSED

__all__ = ["GROUPS", "Lag", "LagReader"]

# The groups as the services name them by default, and the topic that each reads, upstream first: a group commits
# an event only after what it makes of it is in the next topic, so that two lags of 0 mean that all is through.
GROUPS: Final = {"carebus-processor": EVENTS.name, "carebus-claims": EVENTS_PROCESSED.name}


@dataclass(frozen=True, slots=True)
class Lag:
    """Of one group: records it has committed, and records in the topic that it has not."""

    committed: int
    behind: int


class LagReader:
    """Of `groups`, each with the topic it reads; an async context manager.

    Raises KafkaError on entering if the broker does not answer.
    """

    def __init__(self, bootstrap: str, groups: Mapping[str, str] = GROUPS) -> None:
        self._groups = groups
        self._admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, client_id="carebus-demo")
        self._consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, client_id="carebus-demo", group_id=None)

    async def __aenter__(self) -> Self:
        try:
            await self._admin.start()
            await self._consumer.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()
        await self._admin.close()

    async def read(self) -> dict[str, Lag]:
        """The lag of each group, now. Raises KafkaError while the broker is away, or has no group yet."""
        return {group: await self._read(group, topic) for group, topic in self._groups.items()}

    async def _read(self, group: str, topic: str) -> Lag:
        described = await self._admin.describe_topics([topic])
        partitions = [TopicPartition(topic, partition["partition"]) for partition in described[0]["partitions"]]
        # In this order: what is committed by now cannot be past an end that is read later.
        offsets = await self._admin.list_consumer_group_offsets(group, partitions=partitions)
        ends = await self._consumer.end_offsets(partitions)
        committed = {partition: max(0, offsets[partition].offset) for partition in partitions if partition in offsets}
        behind = sum(ends[partition] - committed.get(partition, 0) for partition in partitions)
        return Lag(sum(committed.values()), behind)
