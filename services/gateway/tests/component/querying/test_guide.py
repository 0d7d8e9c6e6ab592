"""The queries of docs/graphql.md that need claims; its commands are executed with those of the other pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from graphql import OperationDefinitionNode, parse

from carebus_gateway.graphql.limits import Limits, cost_of
from carebus_gateway.settings import Settings

from .kit import Claims, claim_id, data

PAGE = (Path(__file__).parents[5] / "docs/graphql.md").read_text()
BLOCKS = re.findall(r"```(graphql|json)\n(.*?)```", PAGE, re.DOTALL)
QUERIES = [text for kind, text in BLOCKS if kind == "graphql"]


@pytest.mark.parametrize("text", QUERIES)
async def test_a_query_of_the_guide_is_answered(front: Any, claims: Claims, text: str) -> None:
    assert await data(front, text, {"id": claim_id(1)})


async def test_the_guide_shows_the_answer_that_one_gets(front: Any, claims: Claims) -> None:
    (shown,) = (json.loads(text) for kind, text in BLOCKS if kind == "json")
    answered = await data(front, QUERIES[0], {"id": claim_id(1)})
    answered["claim"]["audit"]["pageInfo"]["endCursor"] = "…"
    assert {"data": answered} == shown


def test_the_guide_counts_right() -> None:
    document = parse(QUERIES[-1])
    (operation,) = document.definitions
    assert isinstance(operation, OperationDefinitionNode)
    assert cost_of(document, operation, {}) == 610


def test_the_guide_names_the_limits_there_are() -> None:
    settings, limits = Settings(jwks="-"), Limits()
    for said in (
        f"| text | {limits.tokens:,} tokens; the body {settings.graphql_max_body_bytes // 1024} KiB |",
        f"one within another | {settings.graphql_max_depth} |",
        f"| fields, with fragments written out | {limits.nodes} |",
        f"| aliases | {settings.graphql_max_aliases} |",
        f"| cost | {settings.graphql_max_cost:,} |",
        f"| time | {settings.graphql_timeout.total_seconds():g} s |",
        f"| requests to claims at a time | {settings.graphql_concurrency} |",
        f"remembers the {settings.graphql_queries:,} newest",
    ):
        assert said in PAGE, said
