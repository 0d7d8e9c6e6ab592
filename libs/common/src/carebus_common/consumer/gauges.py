"""What alerts look at beside counts: whether a consumer is paused and why, and how far its partitions are behind."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Final, get_args

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from carebus_common import metrics
from carebus_common.cancellation import cancelled
from carebus_common.consumer.letters import Reason
from carebus_common.consumer.limits import Status
from carebus_common.consumer.runtime import OrderedConsumer

__all__ = ["Gauges", "pauses"]

_EVERY: Final = 1.0
_PATIENCE: Final = 3.0


def pauses(status: Status) -> dict[str, bool]:
    """By reason, whether consumption is paused for it."""
    return {
        "failures": status.stopped is not None,
        "parked-full": status.parked_full,
        "store-away": status.store_away,
        "broker-away": status.broker_away or not status.connected,
    }


class Gauges:
    """Keeps `carebus_consumer_paused` and `carebus_consumer_lag_records` up to date.

    Lag is told of owned partitions only, so that replicas can be added up; it keeps its last value while the broker
    does not answer.
    """

    def __init__(self, consumer: OrderedConsumer[Any], lag_interval: timedelta = timedelta(seconds=5)) -> None:
        self._consumer = consumer
        self._topic = consumer.subscription.topic
        self._group = consumer.subscription.group
        self._lag_interval = lag_interval.total_seconds()
        self._told: set[int] = set()
        # Whom to ask for the ends of the partitions.
        self.kafka: AIOKafkaConsumer | None = None

    async def run(self) -> None:
        """Until cancelled."""
        for reason in get_args(Reason):
            # A counter that begins with its first dead letter has not grown by it, for an alert on its increase.
            metrics.DEAD_LETTERS.labels(self._group, reason)
        clock = asyncio.get_running_loop().time
        asked = float("-inf")
        while not cancelled():
            for reason, paused in pauses(self._consumer.status()).items():
                metrics.CONSUMER_PAUSED.labels(self._group, reason).set(paused)
            if clock() - asked >= self._lag_interval:
                asked = clock()
                await self._tell_lag()
            await asyncio.sleep(min(_EVERY, self._lag_interval))

    async def _tell_lag(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                lag = await self._lag(self._consumer.status().partitions)
        except (KafkaError, TimeoutError):
            lag = {}
        owned = self._consumer.status().partitions
        for partition, records in lag.items():
            if partition in owned:
                metrics.CONSUMER_LAG.labels(self._group, self._topic, partition).set(records)
                self._told.add(partition)
        for gone in self._told.difference(owned):
            metrics.CONSUMER_LAG.remove(self._group, self._topic, str(gone))
        self._told.intersection_update(owned)

    async def _lag(self, partitions: tuple[int, ...]) -> dict[int, int]:
        if self.kafka is None or not partitions:
            return {}
        places = {partition: TopicPartition(self._topic, partition) for partition in partitions}
        ends = await self.kafka.end_offsets(places.values())
        begins: dict[TopicPartition, int] | None = None
        found = {}
        for partition, place in places.items():
            reached = await self._consumer.committed(partition)
            if reached is None:
                # Before the first commit, everything there is counts as lag.
                if begins is None:
                    begins = await self.kafka.beginning_offsets(places.values())
                reached = begins[place]
            found[partition] = max(0, ends[place] - reached)
        return found
