"""Writes the documents that the code determines: `make docs`. `tests/docs/test_drift.py` compares them.

Nothing here connects to anything; every document is the same text for the same code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from pymongo import AsyncMongoClient

import carebus_claims.main
import carebus_claims.settings
import carebus_claims.subscribers
import carebus_gateway.routes
import carebus_ingest.main
import carebus_ingest.settings
import carebus_processor.main
import carebus_processor.settings
import carebus_processor.subscribers
from carebus_claims.operations import claims_operations
from carebus_claims.repository import HistoryRepository
from carebus_common import metrics
from carebus_common.consumer import Status
from carebus_common.contracts.event import SCHEMA_VERSION, MedicalEvent
from carebus_common.contracts.event_types import DATA_SCHEMAS
from carebus_common.contracts.processed import ProcessedEvent
from carebus_common.contracts.topics import EVENTS, EVENTS_PROCESSED, TOPICS, TopicDefinition
from carebus_common.http.app import openapi
from carebus_processor.operations import processor_operations
from carebus_processor.status import EventStatus

ROOT = Path(__file__).parents[1]

# What is on each topic today, and who puts it there; who takes it is asked of the services themselves.
MESSAGES: dict[str, type[BaseModel]] = {EVENTS.name: MedicalEvent, EVENTS_PROCESSED.name: ProcessedEvent}
SENDERS = {"ingest": EVENTS.name, "processor": EVENTS_PROCESSED.name}

HEADERS: dict[str, str] = {
    "ce_specversion": "CloudEvents version, 1.0.",
    "ce_id": "The eventId; a repeated message has the same one.",
    "ce_source": "Where the event came from.",
    "ce_type": "What it is.",
    "ce_time": "When it happened, RFC 3339.",
    "content-type": "application/json",
    "organizationId": "The tenant, from the sender's token.",
    "schemaVersion": f"Of the value: {SCHEMA_VERSION}.",
    "traceparent": "W3C trace context.",
}


def topics() -> str:
    """`deploy/kafka/topics.yaml`: for brokers that other tools look after."""
    definitions = [
        {"name": topic.name, "partitions": topic.partitions, "config": configuration(topic)} for topic in TOPICS
    ]
    head = "# For tools other than `carebus topics apply`, which reads carebus_common/contracts/topics.py itself.\n"
    return head + as_yaml(definitions)


def configuration(topic: TopicDefinition) -> dict[str, str]:
    """A topic's settings by Kafka's names."""
    return {"retention.ms": str(int(topic.retention.total_seconds() * 1000)), **topic.settings}


def asyncapi() -> str:
    """`docs/asyncapi.yaml`: every topic, what is on it, who sends and who receives."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in (*MESSAGES.values(), *DATA_SCHEMAS.values())],
        ref_template="#/components/schemas/{model}",
    )
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Carebus",
            "version": "1.0.0",
            "description": "Medical events: each accepted one once, in its patient's order. Keys are patient ids.",
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: channel(topic) for topic in TOPICS},
        "operations": operations(),
        "components": {
            "messages": {model.__name__: message(model) for model in MESSAGES.values()},
            "schemas": schemas["$defs"],
        },
    }
    return as_yaml(document)


def channel(topic: TopicDefinition) -> dict[str, Any]:
    model = MESSAGES.get(topic.name)
    configured: dict[str, Any] = {name: int(value) for name, value in configuration(topic).items() if value.isdigit()}
    configured["cleanup.policy"] = topic.settings.get("cleanup.policy", "delete").split(",")
    carried = {model.__name__: {"$ref": f"#/components/messages/{model.__name__}"}} if model else {}
    return {
        "address": topic.name,
        "description": (model.__doc__ or "").strip() if model else "Reserved: nothing is published here yet.",
        "messages": carried,
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": configured,
                "bindingVersion": "0.5.0",
            }
        },
    }


def operations() -> dict[str, Any]:
    sends = {f"{service}.send": operation("send", topic) for service, topic in SENDERS.items()}
    receives = {
        f"{service}.receive": {
            **operation("receive", topic),
            "bindings": {"kafka": {"groupId": {"type": "string", "enum": [group]}, "bindingVersion": "0.5.0"}},
        }
        for service, topic, group in subscriptions()
    }
    return dict(sorted((sends | receives).items()))


def subscriptions() -> list[tuple[str, str, str]]:
    """Service, topic and consumer group of every subscriber, with default settings."""
    claims = carebus_claims.settings.Settings(jwks="-")
    processor = carebus_processor.settings.Settings(jwks="-")
    to_claims = carebus_claims.subscribers.subscription(claims.claims_group, claims.claims_topic)
    to_processor = carebus_processor.subscribers.subscription(processor.consumer_group)
    return [
        ("claims", to_claims.topic, to_claims.group),
        ("processor", to_processor.topic, to_processor.group),
    ]


def operation(action: str, topic: str) -> dict[str, Any]:
    # `/` and `~` alone need escaping in a JSON pointer; a topic's name has neither.
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{topic}"},
        "messages": [{"$ref": f"#/channels/{topic}/messages/{MESSAGES[topic].__name__}"}],
    }


def message(model: type[BaseModel]) -> dict[str, Any]:
    return {
        "name": model.__name__,
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "properties": {name: {"type": "string", "description": text} for name, text in HEADERS.items()},
        },
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        # By the event's type, what `data` holds; of other types, any object.
        "x-data": {name: {"$ref": f"#/components/schemas/{data.__name__}"} for name, data in DATA_SCHEMAS.items()},
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": "The patientId's UTF-8 bytes."},
                "bindingVersion": "0.5.0",
            }
        },
    }


@cache
def apis() -> dict[str, dict[str, Any]]:
    """The OpenAPI documents of the services that have routes of their own, by service."""
    ingest = carebus_ingest.settings.Settings(jwks="-")
    claims = carebus_claims.settings.Settings(jwks="-")
    processor = carebus_processor.settings.Settings(jwks="-")
    nowhere: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient("mongodb://nowhere.invalid", connect=False)
    histories = HistoryRepository(nowhere["docs"], timeout=claims.read_timeout)
    status = EventStatus(nowhere["docs"], NoConsumer())
    of_claims = claims_operations(claims, nowhere["docs"], NoConsumer())
    of_processor = processor_operations(processor, nowhere["docs"], NoConsumer())
    return {
        "ingest": openapi(carebus_ingest.main.create_api(ingest)),
        "claims": openapi(carebus_claims.main.create_api(claims, None, histories, of_claims)),
        "processor": openapi(carebus_processor.main.create_api(processor, None, status, of_processor)),
    }


class NoConsumer:
    async def committed(self, partition: int) -> int | None:
        raise NotImplementedError

    def status(self) -> Status:
        raise NotImplementedError


def gateway_api() -> dict[str, Any]:
    """What the gateway lets through, by its table of routes; the operations are the upstreams' own."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Carebus gateway",
            "version": "1.0.0",
            "description": "The front door; 502, 503 and 504 tell that the service behind it is away.",
        },
        "paths": {},
        "components": {},
    }
    for upstream, path, method, described in operations_let_through():
        same = [known for known in document["paths"] if anonymous(known) == anonymous(path)]
        known = document["paths"].setdefault(same[0] if same else path, {})
        if method in known:
            known[method] = either(known[method], described)
        else:
            known[method] = described
        for kind, named in apis()[upstream]["components"].items():
            merge(document["components"].setdefault(kind, {}), named)
    return document


def operations_let_through() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for route in carebus_gateway.routes.ROUTES:
        for upstream in route.upstreams:
            for path, item in apis()[upstream]["paths"].items():
                if route.method.lower() in item and leads_to(route, path):
                    yield upstream, path, route.method.lower(), item[route.method.lower()]


def leads_to(route: carebus_gateway.routes.Route, path: str) -> bool:
    return carebus_gateway.routes.find_route(route.method, anonymous(path)) is route


def anonymous(path: str) -> str:
    return re.sub(r"\{\w+\}", "x", path)


def either(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The operation of the upstream that is asked first, with what the second one may answer instead."""
    schemas = [one["responses"]["200"]["content"]["application/json"]["schema"] for one in (first, second)]
    answer = {
        "description": "From whichever service knows it.",
        "content": {"application/json": {"schema": {"anyOf": schemas}}},
    }
    return {
        **first,
        "description": f"{first['description']}\n\nOr, where that is 404: {second['description']}",
        "security": [{"bearer": sorted({role for one in (first, second) for role in one["security"][0]["bearer"]})}],
        "responses": {**first["responses"], "200": answer},
    }


def merge(known: dict[str, Any], more: dict[str, Any]) -> None:
    for name, schema in more.items():
        if known.setdefault(name, schema) != schema:
            raise ValueError(f"two services mean different things by {name}")


def service_api(service: str) -> str:
    """`docs/openapi/SERVICE.json`."""
    document = gateway_api() if service == "gateway" else apis()[service]
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def metrics_page() -> str:
    """`docs/metrics.md`: the list in carebus_common/metrics.py."""
    lines = [
        "# Metrics",
        "",
        "Every service serves them at `/metrics` on its management port. Generated by `make docs` from",
        "`carebus_common/metrics.py`, whose comments say more.",
        "",
        "| metric | type | labels | what |",
        "|---|---|---|---|",
    ]
    found = [thing for thing in vars(metrics).values() if isinstance(thing, MetricWrapperBase)]
    for metric in found:
        (family,) = metric.describe()
        suffix = "_total" if family.type == "counter" else ""
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        lines.append(f"| `{family.name}{suffix}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(lines) + "\n"


def as_yaml(document: Any) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True)


DOCUMENTS: dict[str, Callable[[], str]] = {
    "deploy/kafka/topics.yaml": topics,
    "docs/asyncapi.yaml": asyncapi,
    "docs/metrics.md": metrics_page,
    **{
        f"docs/openapi/{service}.json": partial(service_api, service)
        for service in ("ingest", "claims", "processor", "gateway")
    },
}


def main() -> None:
    for path, document in DOCUMENTS.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(document())
        print(path)  # noqa: T201


if __name__ == "__main__":
    main()
