"""The OpenAPI documents: complete, and the gateway's is what its table lets through."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from carebus_gateway.routes import ROUTES, find_route

DOCUMENTS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parents[2] / "docs/openapi").glob("*.json"))
}


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(reference := node.get("$ref"), str):
            yield reference
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method.upper(), operation


def test_every_service_has_a_document() -> None:
    assert DOCUMENTS.keys() == {"claims", "gateway", "ingest", "processor"}
    assert all(document["paths"] for document in DOCUMENTS.values())


@pytest.mark.parametrize("service", DOCUMENTS)
def test_every_reference_leads_somewhere(service: str) -> None:
    found = set(references(DOCUMENTS[service]))
    assert found
    for reference in found:
        node = DOCUMENTS[service]
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


@pytest.mark.parametrize("service", DOCUMENTS)
def test_every_operation_asks_for_roles_and_may_refuse_in_the_envelope(service: str) -> None:
    for path, method, operation in operations(DOCUMENTS[service]):
        (requirement,) = operation["security"]
        assert requirement["bearer"], f"{method} {path}"
        # Every status by itself: `default` would cover what nobody has thought of.
        refusals = {status: one for status, one in operation["responses"].items() if not status.startswith("2")}
        assert refusals.keys() >= {"400", "401", "403", "503"}
        for refusal in refusals.values():
            schema = refusal["content"]["application/json"]["schema"]
            # GraphQL says some of it in its own way.
            assert {"$ref": "#/components/schemas/Error"} in schema.get("anyOf", [schema])
        assert operation["summary"]
        assert operation["description"]


def test_every_operation_of_a_service_passes_the_gateway() -> None:
    behind = {
        (method, re.sub(r"\{\w+\}", "x", path))
        for service in DOCUMENTS.keys() - {"gateway"}
        for path, method, _ in operations(DOCUMENTS[service])
    }
    shown = {(method, re.sub(r"\{\w+\}", "x", path)) for path, method, _ in operations(DOCUMENTS["gateway"])}
    assert behind == shown - {("POST", "/graphql")}


def test_the_gateway_shows_every_route_of_its_table_and_no_other() -> None:
    shown = {
        find_route(method, re.sub(r"\{\w+\}", "x", path))
        for path, method, _ in operations(DOCUMENTS["gateway"])
        if path != "/graphql"  # which the gateway answers itself
    }
    assert shown == set(ROUTES)


def test_the_status_of_an_event_may_come_from_either_service() -> None:
    (operation,) = (
        operation
        for path, method, operation in operations(DOCUMENTS["gateway"])
        if method == "GET" and path.startswith("/events/")
    )
    answers = operation["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
    assert len(answers) == 2
