"""Queries named by their hash, and allow-lists."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from carebus_gateway.graphql.endpoint import GraphQL
from carebus_gateway.settings import Settings

from .kit import Claims, ask, claim_id, code, data


def persisted(text: str, **changed: Any) -> dict[str, Any]:
    return {"persistedQuery": {"version": 1, "sha256Hash": sha256(text.encode()).hexdigest(), **changed}}


async def test_a_query_once_sent_may_be_named_by_its_hash(front: Any, claims: Claims) -> None:
    text = "query ($id: ID!) { claim(id: $id) { total } }"
    variables = {"id": claim_id(1)}

    unknown = await ask(front, None, variables, extensions=persisted(text))
    assert (unknown.status_code, unknown.json()["errors"][0]["message"]) == (200, "PersistedQueryNotFound")
    assert unknown.json()["errors"][0]["extensions"]["code"] == "PERSISTED_QUERY_NOT_FOUND"
    registered = await ask(front, text, variables, extensions=persisted(text))
    known = await ask(front, None, {"id": claim_id(2)}, extensions=persisted(text))

    assert registered.json() == known.json() == {"data": {"claim": {"total": "136.80"}}}
    assert front.claims.requests[1].target == f"/claims/{claim_id(2)}"


async def test_a_hash_stands_for_its_own_query_only(front: Any, claims: Claims) -> None:
    other = persisted("{ __schema { types { name } } }")
    assert await code(front, "{ __typename }", extensions=other) == (400, "invalid-request")
    assert await code(front, None, extensions=other) == (200, "PERSISTED_QUERY_NOT_FOUND")


async def test_a_query_that_is_refused_is_not_remembered(front: Any) -> None:
    for text in ("{ nothing }", "{", "mutation { pay }"):
        await ask(front, text, extensions=persisted(text))
        assert await code(front, None, extensions=persisted(text)) == (200, "PERSISTED_QUERY_NOT_FOUND")


@pytest.mark.parametrize(
    "extension",
    [{"version": 2}, {"version": None}, {"sha256Hash": "x"}, {"sha256Hash": None}, {"sha256Hash": "A" * 64}],
)
async def test_a_malformed_hash_is_refused(front: Any, extension: dict[str, Any]) -> None:
    text = "{ __typename }"
    assert await code(front, text, extensions=persisted(text, **extension)) == (400, "invalid-request")
    assert await code(front, text, extensions={"persistedQuery": []}) == (400, "invalid-request")


async def test_only_the_newest_queries_are_remembered(kit: Any, issuer: Any, jwks: str) -> None:
    async with kit.running(issuer, jwks, graphql_queries=3) as front:
        texts = [f"query q{number} {{ __typename }}" for number in range(4)]
        for text in texts[:3]:
            await data(front, text)
        await data(front, texts[0])
        await data(front, texts[3])
        found = [(await ask(front, None, extensions=persisted(text))).json() for text in texts]
        assert ["data" in answer for answer in found] == [True, False, True, True]


async def test_with_an_allow_list_nothing_else_is_answered(kit: Any, issuer: Any, jwks: str, tmp_path: Path) -> None:
    allowed = "{ claims { edges { node { claimId } } } }"
    file = tmp_path / "allowed.json"
    file.write_text(json.dumps({sha256(allowed.encode()).hexdigest(): allowed}))
    async with kit.running(issuer, jwks, graphql_allow_list=str(file)) as front:
        front.claims.behave = Claims()
        assert (await ask(front, None, extensions=persisted(allowed))).status_code == 200
        assert len((await data(front, allowed))["claims"]["edges"]) == 20
        for text in ("{ __typename }", allowed + " "):
            assert await code(front, text) == (422, "not-allowed")


@pytest.mark.parametrize("content", ["", "[]", '{"ab": "{ __typename }"}', '{"%s": "{ nothing }"}'])
def test_an_allow_list_that_cannot_hold_stops_the_start(kit: Any, tmp_path: Path, content: str) -> None:
    file = tmp_path / "allowed.json"
    file.write_text(content.replace("%s", sha256(b"{ nothing }").hexdigest()))
    upstream: Any = None
    with pytest.raises(ValueError, match=r"allowed\.json"):
        GraphQL(upstream, Settings(jwks="-", graphql_allow_list=file))
