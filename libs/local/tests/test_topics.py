from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from carebus_common.contracts.topics import TOPICS, TopicDefinition
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name
from carebus_local.topics import TopicChange, TopicsRefused, apply


@pytest.fixture
def topic() -> TopicDefinition:
    return TopicDefinition(random_name("topic"), 3, timedelta(days=14), {"max.message.bytes": "1048576"})


async def settings_of(bootstrap: str, name: str) -> dict[str, str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        (described,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name, None)])
        return {entry[0]: entry[1] for entry in described.resources[0][-1]}
    finally:
        await admin.close()


async def set_on_topic(bootstrap: str, name: str, settings: dict[str, str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, settings)])
    finally:
        await admin.close()


async def partitions_of(bootstrap: str, name: str) -> int:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        described: list[dict[str, Any]] = await admin.describe_topics([name])
        return len(described[0]["partitions"])
    finally:
        await admin.close()


async def test_all_defined_topics_are_created_and_a_second_time_changes_nothing(stack: StackUrls) -> None:
    renamed = [replace(topic, name=random_name(topic.name)) for topic in TOPICS]
    created = await apply(stack.kafka_bootstrap, topics=renamed)
    assert [(change.name, change.action) for change in created] == [(topic.name, "created") for topic in renamed]
    again = await apply(stack.kafka_bootstrap, topics=renamed)
    assert again == [TopicChange(topic.name, "unchanged") for topic in renamed]


async def test_a_created_topic_has_the_partitions_retention_and_settings_of_its_definition(
    stack: StackUrls, topic: TopicDefinition
) -> None:
    await apply(stack.kafka_bootstrap, topics=[topic])
    settings = await settings_of(stack.kafka_bootstrap, topic.name)
    assert await partitions_of(stack.kafka_bootstrap, topic.name) == 3
    assert settings["retention.ms"] == "1209600000"
    assert settings["max.message.bytes"] == "1048576"


async def test_a_changed_definition_alters_the_topic_and_keeps_what_an_operator_set(
    stack: StackUrls, topic: TopicDefinition
) -> None:
    await apply(stack.kafka_bootstrap, topics=[topic])
    before = {"retention.ms": "1209600000", "max.message.bytes": "1048576"}
    await set_on_topic(stack.kafka_bootstrap, topic.name, {**before, "segment.ms": "3600000"})
    (change,) = await apply(stack.kafka_bootstrap, topics=[replace(topic, retention=timedelta(days=30))])
    assert (change.action, change.detail) == ("altered", "retention.ms 1209600000 → 2592000000")
    settings = await settings_of(stack.kafka_bootstrap, topic.name)
    assert settings["retention.ms"] == "2592000000"
    assert settings["segment.ms"] == "3600000"


async def test_partitions_grow_only_when_asked(stack: StackUrls, topic: TopicDefinition) -> None:
    await apply(stack.kafka_bootstrap, topics=[topic])
    grown = replace(topic, partitions=5)
    with pytest.raises(TopicsRefused, match="has 3 partitions and should have 5"):
        await apply(stack.kafka_bootstrap, topics=[grown])
    assert await partitions_of(stack.kafka_bootstrap, topic.name) == 3
    (change,) = await apply(stack.kafka_bootstrap, topics=[grown], grow_partitions=True)
    assert change == TopicChange(topic.name, "altered", "partitions 3 → 5")
    assert await partitions_of(stack.kafka_bootstrap, topic.name) == 5


async def test_a_topic_with_more_partitions_than_defined_is_left_and_told(
    stack: StackUrls, topic: TopicDefinition
) -> None:
    await apply(stack.kafka_bootstrap, topics=[topic])
    (change,) = await apply(stack.kafka_bootstrap, topics=[replace(topic, partitions=2)], grow_partitions=True)
    assert (change.action, change.detail) == ("unchanged", "has 3 partitions, more than the 2 defined")


async def test_a_replication_factor_the_cluster_cannot_hold_is_refused_with_the_brokers_reason(
    stack: StackUrls, topic: TopicDefinition
) -> None:
    with pytest.raises(TopicsRefused, match="replication factor"):
        await apply(stack.kafka_bootstrap, topics=[topic], replication_factor=3)
