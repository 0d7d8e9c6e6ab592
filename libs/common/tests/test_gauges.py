"""What alerts look at is set by a consumer that runs, and by nothing else."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
from aiokafka.errors import KafkaConnectionError

from carebus_common.consumer import Status
from carebus_common.consumer.gauges import Gauges, pauses
from carebus_local.testing import random_name

WELL = Status(
    connected=True,
    partitions=(0, 1),
    in_flight=0,
    stopped_patients=0,
    store_away=False,
    broker_away=False,
    paused=False,
)


class Kafka:
    """Partitions end at 10; what is kept of them begins at 4. `away`: it does not answer."""

    away = False

    async def end_offsets(self, places: Any) -> dict[Any, int]:
        if self.away:
            raise KafkaConnectionError
        return dict.fromkeys(places, 10)

    async def beginning_offsets(self, places: Any) -> dict[Any, int]:
        return dict.fromkeys(places, 4)


class Consumer:
    """Partition 0 is committed up to 7, no other one is."""

    def __init__(self) -> None:
        self.now = WELL
        self.subscription = SimpleNamespace(topic="events", group=random_name("group"))

    def status(self) -> Status:
        return self.now

    async def committed(self, partition: int) -> int | None:
        return 7 if partition == 0 else None

    def lag(self) -> dict[int, float]:
        (family,) = (f for f in prometheus_client.REGISTRY.collect() if f.name == "carebus_consumer_lag_records")
        mine = [sample for sample in family.samples if sample.labels["group"] == self.subscription.group]
        return {int(sample.labels["partition"]): sample.value for sample in mine}

    def paused(self, reason: str) -> float | None:
        labels = {"group": self.subscription.group, "reason": reason}
        return prometheus_client.REGISTRY.get_sample_value("carebus_consumer_paused", labels)


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("failures", {"stopped": "100 events in a row failed"}),
        ("parked-full", {"parked_full": True}),
        ("store-away", {"store_away": True}),
        ("broker-away", {"broker_away": True}),
        ("broker-away", {"connected": False}),
    ],
)
def test_each_reason_to_pause_is_told_apart(reason: str, status: dict[str, Any]) -> None:
    found = pauses(Status(**{**vars_of(WELL), **status}))
    assert [name for name, paused in found.items() if paused] == [reason]
    assert not any(pauses(WELL).values())


async def test_pauses_and_lag_are_told_while_it_runs_and_only_of_owned_partitions() -> None:
    consumer, kafka = Consumer(), Kafka()
    gauges = Gauges(consumer, timedelta(milliseconds=10))  # type: ignore[arg-type]
    task = asyncio.create_task(gauges.run())
    try:
        await until(lambda: consumer.paused("broker-away") == 0)
        assert consumer.lag() == {}
        labels = {"group": consumer.subscription.group, "reason": "crashed"}
        assert prometheus_client.REGISTRY.get_sample_value("carebus_dead_letters_total", labels) == 0
        gauges.kafka = kafka
        # What was never committed lags from where the partition begins.
        await until(lambda: consumer.lag() == {0: 3, 1: 6})
        kafka.away = True
        consumer.now = Status(**{**vars_of(WELL), "stopped": "too much failed"})
        await until(lambda: consumer.paused("failures") == 1)
        assert consumer.lag() == {0: 3, 1: 6}
        consumer.now = Status(**{**vars_of(WELL), "partitions": (1,)})
        await until(lambda: consumer.lag() == {1: 6} and consumer.paused("failures") == 0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def vars_of(status: Status) -> dict[str, Any]:
    return {name: getattr(status, name) for name in status.__slots__}


async def until(check: Any) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.005)
