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
import carebus_gateway.graphql.endpoint
import carebus_gateway.routes
import carebus_ingest.main
import carebus_ingest.settings
import carebus_processor.main
import carebus_processor.settings
import carebus_processor.subscribers
from carebus_claims.change_feed import ChangeFeed
from carebus_claims.claim_routes import claim_routes
from carebus_claims.claim_service import ClaimService
from carebus_claims.claim_store import ClaimStore
from carebus_claims.operations import claims_operations
from carebus_claims.repository import HistoryRepository
from carebus_common import metrics
from carebus_common.consumer import Status, Subscription
from carebus_common.consumer.letters import DLQ_HEADERS
from carebus_common.contracts.event import SCHEMA_VERSION, MedicalEvent
from carebus_common.contracts.event_types import DATA_SCHEMAS
from carebus_common.contracts.processed import ProcessedEvent
from carebus_common.contracts.topics import CLAIMS_DLQ, EVENTS, EVENTS_DLQ, EVENTS_PROCESSED, TOPICS, TopicDefinition
from carebus_common.http.cursor import CursorCodec
from carebus_common.http.documentation import openapi, refusal_response
from carebus_processor.operations import processor_operations
from carebus_processor.status import EventStatus

ROOT = Path(__file__).parents[1]

# What is on each topic today, and who puts it there; who takes it is asked of the services themselves.
MESSAGES: dict[str, type[BaseModel]] = {EVENTS.name: MedicalEvent, EVENTS_PROCESSED.name: ProcessedEvent}
SENDERS = {"ingest": EVENTS.name, "processor": EVENTS_PROCESSED.name}
# A dead letter is a record of the topic it was read from, byte for byte, with headers of its own.
DEAD_LETTERS = {EVENTS_DLQ.name: EVENTS.name, CLAIMS_DLQ.name: EVENTS_PROCESSED.name}

DEAD_LETTER_HEADERS: dict[str, str] = {
    "dlq.id": "The dead letter's id, for `carebus dlq show`; a repeated record has the same one.",
    "dlq.topic": "Where the record was read.",
    "dlq.partition": "Its partition there.",
    "dlq.offset": "Its offset there.",
    "dlq.timestamp": "Its timestamp there, milliseconds since 1970.",
    "dlq.group": "The consumer group that could not apply it.",
    "dlq.reason": "permanent, retries-exhausted, undecodable, conflict or crashed.",
    "dlq.error-class": "The class of the error.",
    "dlq.error-message": "What it says, without what the event says; at most 300 characters.",
    "dlq.attempts": "How often it was tried.",
    "dlq.first-failed-at": "ISO 8601.",
    "dlq.last-failed-at": "ISO 8601.",
    "dlq.fingerprint": "The same for failures of one cause.",
}

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
            "messages": {
                **{model.__name__: message(model) for model in MESSAGES.values()},
                "DeadLetter": dead_letter(),
            },
            "schemas": schemas["$defs"],
        },
    }
    return as_yaml(document)


def channel(topic: TopicDefinition) -> dict[str, Any]:
    configured: dict[str, Any] = {name: int(value) for name, value in configuration(topic).items() if value.isdigit()}
    configured["cleanup.policy"] = topic.settings.get("cleanup.policy", "delete").split(",")
    return {
        "address": topic.name,
        "description": description_of(topic),
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages_on(topic.name)},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": configured,
                "bindingVersion": "0.5.0",
            }
        },
    }


def messages_on(topic: str) -> list[str]:
    if topic in DEAD_LETTERS:
        return ["DeadLetter"]
    return [MESSAGES[topic].__name__] if topic in MESSAGES else []


def description_of(topic: TopicDefinition) -> str:
    if topic.name in DEAD_LETTERS:
        return f"Records of {DEAD_LETTERS[topic.name]} that could not be applied, to be read by people and tools."
    model = MESSAGES.get(topic.name)
    return (model.__doc__ or "").strip() if model else "Reserved: nothing is published here yet."


def operations() -> dict[str, Any]:
    sends = {f"{service}.send": operation("send", topic) for service, topic in SENDERS.items()}
    buries = {
        f"{service}.dead-letter": operation("send", what.dead_letter_topic)
        for service, what in subscriptions()
        if what.dead_letter_topic is not None
    }
    receives = {
        f"{service}.receive": {
            **operation("receive", what.topic),
            "description": "In each patient's order; a patient whose event fails is parked, everybody else flows.",
            "bindings": {"kafka": {"groupId": {"type": "string", "enum": [what.group]}, "bindingVersion": "0.5.0"}},
            "x-failures": failures(what),
        }
        for service, what in subscriptions()
    }
    return dict(sorted((sends | buries | receives).items()))


def failures(what: Subscription[Any]) -> dict[str, Any]:
    """What becomes of an event that fails: durations in seconds."""
    retry, limits = what.retry, what.failure_limits
    return {
        "retries": retry.retries,
        "firstRetryAfter": retry.base.total_seconds(),
        "factor": retry.factor,
        "longestWait": retry.longest.total_seconds(),
        "jitter": retry.jitter,
        "deadline": retry.deadline.total_seconds(),
        "handlerDeadline": what.handler_deadline.total_seconds(),
        "crashLimit": what.crash_limit,
        "deadLetterTopic": what.dead_letter_topic,
        "stopsAtShareOfFailures": limits.share,
        "ofTheLast": limits.window,
        "stopsAtConsecutiveFailures": limits.consecutive,
    }


def subscriptions() -> list[tuple[str, Subscription[Any]]]:
    """Every subscription, by its service, with default settings."""
    claims = carebus_claims.settings.Settings(jwks="-")
    processor = carebus_processor.settings.Settings(jwks="-")
    return [
        ("claims", carebus_claims.subscribers.subscription(claims)),
        ("processor", carebus_processor.subscribers.subscription(processor)),
    ]


def operation(action: str, topic: str) -> dict[str, Any]:
    # `/` and `~` alone need escaping in a JSON pointer; a topic's name has neither.
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{topic}"},
        "messages": [{"$ref": f"#/channels/{topic}/messages/{name}"} for name in messages_on(topic)],
    }


def dead_letter() -> dict[str, Any]:
    if set(DEAD_LETTER_HEADERS) != set(DLQ_HEADERS):
        raise ValueError("the headers of a dead letter have changed")
    described = HEADERS | DEAD_LETTER_HEADERS
    return {
        "name": "DeadLetter",
        "summary": "The record as it came, key, value and headers byte for byte, and what happened to it.",
        "contentType": "application/octet-stream",
        "headers": {
            "type": "object",
            "properties": {name: {"type": "string", "description": text} for name, text in described.items()},
            "required": list(DLQ_HEADERS),
        },
        "payload": {"type": "string", "contentEncoding": "binary", "description": "The record's value as it came."},
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": "The record's own key, if it had one."},
                "bindingVersion": "0.5.0",
            }
        },
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
    store = ClaimStore(nowhere["docs"], audit_key=b"")
    routes = claim_routes(ClaimService(store), CursorCodec.of(claims, service="claims"), ChangeFeed())
    of_processor = processor_operations(processor, nowhere["docs"], NoConsumer())
    return {
        "ingest": openapi(carebus_ingest.main.create_api(ingest)),
        "claims": openapi(carebus_claims.main.create_api(claims, None, histories, routes, of_claims)),
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
        known[method]["responses"] |= {str(status): refusal_response(status) for status in (502, 504)}
        for kind, named in apis()[upstream]["components"].items():
            merge(document["components"].setdefault(kind, {}), named)
    document["paths"]["/graphql"] = {"post": graphql_operation()}
    return document


def graphql_operation() -> dict[str, Any]:
    """`POST /graphql`: the form of requests and answers; what may be asked is in `docs/schema.graphql`."""
    error = {
        "type": "object",
        "required": ["message", "extensions"],
        "properties": {
            "message": {"type": "string"},
            "locations": {"type": "array", "items": {"type": "object"}},
            "path": {"type": "array", "items": {"type": ["string", "integer"]}},
            "extensions": {
                "type": "object",
                "required": ["code", "requestId"],
                "properties": {"code": {"type": "string"}, "requestId": {"type": "string"}},
            },
        },
    }
    result = {
        "type": "object",
        "properties": {
            "data": {"type": ["object", "null"]},
            "errors": {"type": "array", "items": error, "minItems": 1},
        },
    }
    request = {
        "type": "object",
        "properties": {
            "query": {"type": ["string", "null"]},
            "operationName": {"type": ["string", "null"]},
            "variables": {"type": ["object", "null"]},
            "extensions": {"type": ["object", "null"]},
        },
    }
    envelope = {"$ref": "#/components/schemas/Error"}
    refusals = {
        "400": "No request, no query of this schema, or one too large.",
        "422": "A mutation, or a query that is not on the allow-list.",
        "504": "Not answered in time.",
    }
    return {
        "summary": "Query claims and patients",
        "description": "GraphQL: what REST has, with as much of it as is asked for. See docs/graphql.md.",
        "security": [{"bearer": ["admin", "patient", "processor", "provider"]}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {
            "200": {"description": "What was asked for.", "content": {"application/json": {"schema": result}}},
            **{
                status: {
                    "description": text,
                    "content": {"application/json": {"schema": {"anyOf": [result, envelope]}}},
                }
                for status, text in refusals.items()
            },
            **{str(status): refusal_response(status) for status in (401, 403, 408, 413, 415, 431, 503)},
        },
    }


def graphql_schema() -> str:
    """`docs/schema.graphql`."""
    return "# What POST /graphql answers. Generated by `make docs`.\n\n" + (
        carebus_gateway.graphql.endpoint.SCHEMA.as_str() + "\n"
    )


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
    "docs/schema.graphql": graphql_schema,
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
