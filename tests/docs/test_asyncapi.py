"""The AsyncAPI document against what the services really publish and subscribe to."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import jsonschema
import msgspec
import pytest
import yaml
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from faststream.kafka import KafkaBroker
from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema
from pymongo import AsyncMongoClient

import carebus_claims.settings
import carebus_claims.subscribers
import carebus_processor.settings
import carebus_processor.subscribers
from carebus_common.consumer import Delivery, OrderedConsumer, Position, Store
from carebus_common.contracts.event import MedicalEvent, encode
from carebus_common.contracts.topics import EVENTS, EVENTS_PROCESSED, TOPICS
from carebus_common.messages import Receipt
from carebus_ingest.accept import Sender, accept_event
from carebus_local import topics
from carebus_local.parts import StackUrls
from carebus_processor.handlers import handle_event

DOCUMENT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "docs/asyncapi.yaml").read_text())

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
EVENT = MedicalEvent(
    event_id=UUID("0198c0de-0000-7000-8000-000000000001"),
    organization_id="north-hospital",
    patient_id="p-1",
    type="vital-signs",
    ts=NOW,
    received_at=NOW,
    data={"heartRate": 131},
)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(reference := node.get("$ref"), str):
            yield reference
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def check(value: bytes, schema: str) -> None:
    jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    ).validate(msgspec.json.decode(value))


def headers_of(message: str) -> set[str]:
    return set(DOCUMENT["components"]["messages"][message]["headers"]["properties"])


def test_the_document_has_the_form_of_asyncapi_3() -> None:
    assert ApplicationSchema.model_validate(DOCUMENT).asyncapi == "3.0.0"


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert found
    for reference in found:
        node = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_every_topic_is_a_channel_with_its_partitions() -> None:
    partitions = {name: channel["bindings"]["kafka"]["partitions"] for name, channel in DOCUMENT["channels"].items()}
    assert partitions == {topic.name: topic.partitions for topic in TOPICS}


def test_an_event_record_is_what_the_document_says() -> None:
    body = b'{"patientId": "p-1", "type": "vital-signs", "ts": "2026-11-23T08:00:00Z", "data": {"heartRate": 131}}'
    message = accept_event(body, Sender("north-hospital", NOW, "00-11-22-01")).message
    assert message.topic == EVENTS.name
    assert message.value is not None
    check(message.value, "MedicalEvent")
    assert {name for name, _ in message.headers} == headers_of("MedicalEvent")


def test_a_record_that_is_not_what_the_document_says_is_told_apart() -> None:
    with pytest.raises(jsonschema.ValidationError, match="patientId"):
        check(encode(EVENT).replace(b'"patientId"', b'"patient"'), "MedicalEvent")


def test_a_processed_record_is_what_the_document_says() -> None:
    received = (("ce_id", str(EVENT.event_id).encode()), ("organizationId", b"north-hospital"), ("traceparent", b"00"))
    delivery = Delivery(EVENT, Position("medical.events.v1", 0, 0), NOW, received)
    change = handle_event(None, delivery)
    assert not hasattr(change, "__await__")
    (message,) = change.messages
    assert message.topic == EVENTS_PROCESSED.name
    assert message.value is not None
    check(message.value, "ProcessedEvent")
    assert {name for name, _ in message.headers} <= headers_of("ProcessedEvent")


class Nowhere:
    async def publish_each(self, messages: Any) -> list[Receipt]:
        raise NotImplementedError


def test_subscribers_listen_where_the_document_says() -> None:
    store = Store(AsyncMongoClient("mongodb://nowhere.invalid", connect=False)["docs"], inbox="i", patients="p")
    broker = KafkaBroker("nowhere.invalid:9092")
    processor = OrderedConsumer(
        carebus_processor.subscribers.subscription(carebus_processor.settings.Settings(jwks="-")), store, Nowhere()
    )
    carebus_processor.subscribers.subscribe(broker, processor)
    claims = carebus_claims.subscribers.subscription(carebus_claims.settings.Settings(jwks="-"))
    carebus_claims.subscribers.subscribe(broker, OrderedConsumer(claims, store, Nowhere()))
    listening = {
        (tuple(topic.name for topic in subscriber.topics), subscriber.group_id)  # type: ignore[attr-defined]
        for subscriber in broker.subscribers
    }
    documented = {
        (
            (operation["channel"]["$ref"].removeprefix("#/channels/"),),
            operation["bindings"]["kafka"]["groupId"]["enum"][0],
        )
        for operation in DOCUMENT["operations"].values()
        if operation["action"] == "receive"
    }
    assert listening == documented


async def test_the_broker_has_the_topics_of_the_document(stack: StackUrls) -> None:
    await topics.apply(stack.kafka_bootstrap)
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    try:
        for name, channel in DOCUMENT["channels"].items():
            bound = channel["bindings"]["kafka"]
            (topic,) = await admin.describe_topics([name])
            assert len(topic["partitions"]) == bound["partitions"]
            (described,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name, None)])
            has = {entry[0]: entry[1] for entry in described.resources[0][-1]}
            wanted = bound["topicConfiguration"]
            assert has["cleanup.policy"].split(",") == wanted["cleanup.policy"]
            assert {key: int(has[key]) for key in wanted if key != "cleanup.policy"} == {
                key: value for key, value in wanted.items() if key != "cleanup.policy"
            }
    finally:
        await admin.close()


def test_every_subscriber_says_where_its_dead_letters_go_and_how_it_retries() -> None:
    for operation in DOCUMENT["operations"].values():
        if operation["action"] == "receive":
            assert operation["x-failures"]["deadLetterTopic"] in DOCUMENT["channels"]
            assert operation["x-failures"]["retries"] == 3
            assert operation["x-failures"]["firstRetryAfter"] == 2
