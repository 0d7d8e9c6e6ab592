"""The topics as `carebus_common.contracts.topics` defines them, brought about on a broker. Any number of times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from carebus_common.contracts.topics import TOPICS, TopicDefinition
from carebus_local.errors import LocalError

__all__ = ["TopicChange", "TopicsRefused", "apply"]

# Who set a topic's value, in the broker's answer: somebody, on this very topic.
_SET_ON_THE_TOPIC = 1
_UNKNOWN_TOPIC = 3
_TOPIC_EXISTS = 36


class TopicsRefused(LocalError):
    """A topic has fewer partitions than defined and growing was not asked for, or the broker refused a change."""


@dataclass(frozen=True, slots=True)
class TopicChange:
    """What became of one topic; `detail` lists what was altered, or what was left though it differs."""

    name: str
    action: Literal["created", "altered", "unchanged"]
    detail: str = ""


async def apply(
    bootstrap: str,
    *,
    replication_factor: int = 1,
    grow_partitions: bool = False,
    topics: Iterable[TopicDefinition] = TOPICS,
    deadline: timedelta = timedelta(seconds=30),
) -> list[TopicChange]:
    """Create the topics, or alter the ones there are to match; one change per topic, in their order.

    Settings that the definition does not name stay as they are. Partitions never shrink, and grow only if
    `grow_partitions`: a patient's later events would go to another partition than the earlier ones, which is a
    procedure and not a side effect. The replication factor counts for topics created; from 3 on, two replicas
    must have a record before it is acknowledged.

    Raises TopicsRefused, after everything else was applied; aiokafka's errors if the broker is away; TimeoutError
    after `deadline`.
    """
    wanted = list(topics)
    async with asyncio.timeout(deadline.total_seconds()), _admin(bootstrap) as admin:
        created = await _create(admin, wanted, replication_factor)
        changes, refused = [], []
        for topic in wanted:
            if topic.name in created:
                changes.append(TopicChange(topic.name, "created", f"{topic.partitions} partitions"))
                continue
            done = await _alter_settings(admin, topic, _settings(topic, replication_factor))
            count = await _partitions(admin, topic.name)
            left = ""
            if count < topic.partitions and grow_partitions:
                done.append(await _grow(admin, topic, count))
            elif count < topic.partitions:
                refused.append(f"{topic.name} has {count} partitions and should have {topic.partitions}")
            elif count > topic.partitions:
                left = f"has {count} partitions, more than the {topic.partitions} defined"
            changes.append(TopicChange(topic.name, "altered" if done else "unchanged", "; ".join(done) or left))
        await _until_led(admin, [topic.name for topic in wanted])
    if refused:
        raise TopicsRefused(
            "; ".join(refused) + ". Growing moves patients to other partitions: drain the topic's consumers first, "
            "then apply with --grow-partitions."
        )
    return changes


@asynccontextmanager
async def _admin(bootstrap: str) -> AsyncIterator[Any]:
    from aiokafka.admin import AIOKafkaAdminClient  # noqa: PLC0415

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, client_id="carebus-topics")
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


def _settings(topic: TopicDefinition, replication_factor: int) -> dict[str, str]:
    wanted = {"retention.ms": str(topic.retention // timedelta(milliseconds=1)), **topic.settings}
    if replication_factor >= 3:
        wanted["min.insync.replicas"] = "2"
    return wanted


async def _create(admin: Any, wanted: list[TopicDefinition], replication_factor: int) -> set[str]:
    """Try to create all, and tell which were not there: looking first would race with another one who applies."""
    from aiokafka.admin import NewTopic  # noqa: PLC0415

    answer = await admin.create_topics(
        [
            NewTopic(t.name, t.partitions, replication_factor, topic_configs=_settings(t, replication_factor))
            for t in wanted
        ]
    )
    for name, code, message in answer.topic_errors:
        if code not in (0, _TOPIC_EXISTS):
            raise TopicsRefused(f"the broker did not create {name}: {message or f'error {code}'}")
    return {name for name, code, _ in answer.topic_errors if code == 0}


async def _alter_settings(admin: Any, topic: TopicDefinition, wanted: Mapping[str, str]) -> list[str]:
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # noqa: PLC0415

    (described,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name, None)])
    code, message, *_, entries = described.resources[0]
    if code:
        raise TopicsRefused(f"the broker did not describe {topic.name}: {message or f'error {code}'}")
    now = {name: value for name, value, _, source, *_ in entries if source == _SET_ON_THE_TOPIC}
    different = {name: value for name, value in wanted.items() if now.get(name) != value}
    if different:
        # The request replaces all of a topic's settings, so it has to repeat those that stay.
        resource = ConfigResource(ConfigResourceType.TOPIC, topic.name, {**now, **different})
        (altered,) = await admin.alter_configs([resource])
        code, message, *_ = altered.resources[0]
        if code:
            raise TopicsRefused(f"the broker did not alter {topic.name}: {message or f'error {code}'}")
    return [f"{name} {now.get(name, 'unset')} → {value}" for name, value in different.items()]


async def _partitions(admin: Any, name: str) -> int:
    (described,) = await admin.describe_topics([name])
    if described["error_code"] == _UNKNOWN_TOPIC:
        raise TopicsRefused(f"{name} was deleted meanwhile")
    return len(described["partitions"])


async def _grow(admin: Any, topic: TopicDefinition, count: int) -> str:
    from aiokafka.admin import NewPartitions  # noqa: PLC0415

    await admin.create_partitions({topic.name: NewPartitions(topic.partitions)})
    return f"partitions {count} → {topic.partitions}"


async def _until_led(admin: Any, names: list[str]) -> None:
    """A topic just created has no leaders for a moment, and a producer's first record would wait for them."""
    while True:
        described = await admin.describe_topics(names)
        if all(t["partitions"] and all(p["leader"] >= 0 for p in t["partitions"]) for t in described):
            return
        await asyncio.sleep(0.02)
