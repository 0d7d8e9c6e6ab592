"""The OpenAPI document describes routes that stand in front of the app: held against what they really answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from carebus_common.http import openapi
from carebus_common.http.idempotency_key import parse_key
from carebus_common.kafka import BrokerAway, Publisher
from carebus_ingest.documentation import described_routes
from carebus_ingest.main import create_api
from carebus_ingest.settings import Settings

from ..conftest import Ingest, RunIngest


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi(create_api(Settings(jwks="unused")))


def operation(document: dict[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = document["paths"][path]["post"]
    return found


def holds(document: dict[str, Any], path: str, answer: httpx.Response) -> None:
    """The answer's status, body and headers are the documented ones."""
    responses = operation(document, path)["responses"]
    assert str(answer.status_code) in responses, answer.text
    described = responses[str(answer.status_code)]
    schema = described["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
    for name in described.get("headers", {}):
        if name not in ("Idempotency-Replayed", "Retry-After") or answer.status_code in (429, 503):
            assert name in answer.headers, name


def test_the_document_has_both_routes_and_nothing_else(document: dict[str, Any]) -> None:
    assert {(method, path) for path, methods in document["paths"].items() for method in methods} == {
        ("post", "/events"),
        ("post", "/events/batch"),
    }
    for path in document["paths"]:
        assert operation(document, path)["security"] == [{"bearer": ["event-sender"]}]


async def test_the_described_routes_are_never_called() -> None:
    for route in described_routes().routes:
        arguments = dict.fromkeys(["event", "events", "sender", "idempotency_key"])
        names = route.endpoint.__annotations__  # type: ignore[attr-defined]
        with pytest.raises(NotImplementedError):
            await route.endpoint(**{name: value for name, value in arguments.items() if name in names})  # type: ignore[attr-defined]


def test_the_documented_limits_are_the_real_ones(document: dict[str, Any]) -> None:
    content = operation(document, "/events/batch")["requestBody"]["content"]
    assert set(content) == {"application/json", "application/x-ndjson", "application/ndjson", "application/jsonl"}
    assert content["application/json"]["schema"]["maxItems"] == Settings(jwks="unused").max_batch_events
    (key,) = [
        parameter
        for parameter in operation(document, "/events")["parameters"]
        if parameter["name"].lower() == "idempotency-key"
    ]
    (text,) = [one for one in key["schema"]["anyOf"] if one["type"] == "string"]
    assert parse_key(b"x" * text["maxLength"])
    assert not key.get("required")


async def test_every_answer_is_as_documented(
    document: dict[str, Any], ingest: Ingest, run_ingest: RunIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = ingest.event()
    answers = {
        "/events": [
            await ingest.post(event),
            await ingest.post({"x": 1}),
            await ingest.post(event, authorization="x"),
            await ingest.post(event, authorization=ingest.bearer(roles=("admin",))),
            await ingest.post(event, content_type="text/plain"),
            await ingest.post(b"x" * 400_000),
            await ingest.post(event, X_Padding="x" * 20_000),
            await ingest.post(event, idempotency_key="documented"),
            await ingest.post(ingest.event(), idempotency_key="documented"),
        ],
        "/events/batch": [
            await ingest.post_batch([event]),
            await ingest.post_batch([event, {"x": 1}, 7]),
            await ingest.post_batch([]),
            await ingest.post_batch([event], authorization="x"),
            await ingest.post_batch([event], authorization=ingest.bearer(roles=("admin",))),
            await ingest.post_batch([event], content_type="text/plain"),
        ],
    }

    async def away(*_: object) -> None:
        raise BrokerAway("away")

    async with run_ingest(rate_limit_events_per_minute=1) as limited:
        with monkeypatch.context() as patch:
            patch.setattr(Publisher, "publish", away)
            answers["/events"] += [await limited.post(event), await limited.post(event)]
        answers["/events/batch"] += [await limited.post_batch([event])]
    assert [answer.status_code for answer in answers["/events"]] == [
        202, 400, 401, 403, 415, 413, 431, 202, 422, 503, 429,
    ]  # fmt: skip
    assert [answer.status_code for answer in answers["/events/batch"]] == [202, 207, 400, 401, 403, 415, 429]
    for path, given in answers.items():
        for answer in given:
            holds(document, path, answer)
