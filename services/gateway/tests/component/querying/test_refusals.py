"""What is refused before anything is read: no input is an internal error, and no text is long work."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from graphql import build_client_schema, get_introspection_query
from structlog.testing import capture_logs

from .kit import Claims, ask, claim_id, code, data


async def test_a_token_is_needed_before_the_body_is_read(front: Any) -> None:
    for headers in ({}, {"Authorization": "Bearer a.b.c"}):
        answer = await front.http.post("/graphql", content=b"{", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")
    assert not front.claims.connections


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "PATCH"])
async def test_only_post_is_known_and_there_is_no_page_to_look_at(front: Any, method: str) -> None:
    answer = await front.http.request(
        method, "/graphql?query={__typename}", headers={**front.token(), "Accept": "text/html"}
    )
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (400, "malformed-json")),
        (b"{", (400, "malformed-json")),
        (b'{"query": "{__typename}", "query": "{__typename}"}', (400, "malformed-json")),
        (b'{"query": "\\ud800"}', (400, "malformed-json")),
        (b"\xff\xfe", (400, "malformed-json")),
        (b"null", (400, "malformed-json")),
        (b'[{"query": "{__typename}"}]', (400, "malformed-json")),
        (b'{"query": {}}', (400, "invalid-request")),
        (b'{"query": 1}', (400, "invalid-request")),
        (b"{}", (400, "invalid-request")),
        (b'{"query": ""}', (400, "invalid-request")),
        (b'{"query": "   "}', (400, "invalid-request")),
        (b'{"query": "{__typename}", "variables": []}', (400, "invalid-request")),
        (b'{"query": "{__typename}", "variables": "x"}', (400, "invalid-request")),
        (b'{"query": "{__typename}", "operationName": 1}', (400, "invalid-request")),
        (b'{"query": "{__typename}", "operationName": "x"}', (400, "invalid-request")),
        (b'{"query": "{__typename}", "extensions": 1}', (400, "invalid-request")),
        (b'{"query": "query a {__typename} query b {__typename}"}', (400, "invalid-request")),
        (b'{"query": "fragment f on Claim { total }"}', (400, "invalid-request")),
        (b'{"query": "{ claim }"}', (400, "invalid-request")),
        (b'{"query": "{ claim(id: {}) { total } }"}', (400, "invalid-request")),
        (b'{"query": "{ claims(first: 1.5) { edges { cursor } } }"}', (400, "invalid-request")),
        (b'{"query": "{ claims(first: 99999999999) { edges { cursor } } }"}', (400, "invalid-request")),
        (b'{"query": "{ nothing }"}', (400, "invalid-request")),
        (b'{"query": "type T { a: Int }"}', (400, "invalid-request")),
        (b'{"query": "{ ...f } fragment f on Query { ...f }"}', (400, "invalid-request")),
        (
            b'{"query": "query ($a: Money) { claims(filter: {minTotal: $a}) { edges { cursor } } }",'
            b' "variables": {"a": []}}',
            (400, "invalid-request"),
        ),
        (b'{"query": "query ($a: ID!) { claim(id: $a) { total } }"}', (400, "invalid-request")),
        (b'{"query": "mutation { pay }"}', (422, "not-allowed")),
        (b'{"query": "mutation { claim(id: 1) { total } }"}', (422, "not-allowed")),
        (b'{"query": "subscription { claims { edges { cursor } } }"}', (422, "not-allowed")),
        (b'{"query": "query a {__typename} mutation b { pay }", "operationName": "b"}', (400, "invalid-request")),
    ],
)
async def test_a_request_that_is_none_is_refused_as_graphql_refuses(
    front: Any, body: bytes, expected: tuple[int, str]
) -> None:
    with capture_logs() as logs:
        answer = await front.http.post(
            "/graphql", content=body, headers={**front.token(), "Content-Type": "application/json"}
        )

    error = answer.json()["errors"][0]
    assert (answer.status_code, error["extensions"]["code"]) == expected
    assert error["extensions"]["requestId"] == answer.headers["x-request-id"]
    assert "data" not in answer.json()
    assert not front.claims.requests
    assert not [entry for entry in logs if entry["log_level"] in ("error", "critical")]


async def test_other_bodies_are_refused_as_elsewhere(front: Any) -> None:
    typed = {**front.token(), "Content-Type": "text/plain"}
    assert (await front.http.post("/graphql", content=b"{}", headers=typed)).status_code == 415
    long = json.dumps({"query": "{__typename}", "variables": {"a": "x" * 70_000}})
    json_type = {**front.token(), "Content-Type": "application/json"}
    assert (await front.http.post("/graphql", content=long, headers=json_type)).status_code == 413
    assert (await front.http.post("/graphql?a=1", content=b"{}", headers=json_type)).status_code == 400


async def test_a_query_may_be_eight_deep(front: Any, claims: Claims) -> None:
    again = "{ claims(first: 2) { edges { node { patient { %s } } } } }"
    audited = "claims(first: 2) { edges { node { audit(first: 2) { pageInfo { endCursor } } } } }"
    assert await code(front, again % audited) == (400, "invalid-request")
    allowed = again % "claims(first: 2) { edges { node { patient { patientId } } } }"
    assert len((await data(front, allowed))["claims"]["edges"]) == 2
    for text in ("{ a" * 5000, "{ a " * 450 + "}" * 450, "[" * 900, "{ a(b: " + "[" * 900):
        assert await code(front, text) == (400, "invalid-request"), text[:20]


async def test_a_query_may_not_cost_too_much(front: Any, claims: Claims) -> None:
    text = "query ($n: Int!) { claims(first: $n) { edges { node { audit(first: 20) { edges { node { seq } } } } } } }"
    # 10 + n * (1 + 10 + 20)
    assert await code(front, text, {"n": 65}) == (400, "invalid-request")
    assert not front.claims.requests
    await data(front, text, {"n": 64})
    answer = await ask(front, text, {"n": 200})
    assert answer.json()["errors"][0]["message"] == "The query is too large: cost 6210, of 2000 at most."


async def test_aliases_are_bounded(front: Any, claims: Claims) -> None:
    fields = [f'a{number}: claim(id: "{claim_id(number)}") {{ total }}' for number in range(21)]
    await data(front, f"{{ {' '.join(fields[:20])} }}")
    assert await code(front, f"{{ {' '.join(fields)} }}") == (400, "invalid-request")


@pytest.mark.parametrize(
    "text",
    [
        "{ " + "__typename " * 900 + "}",
        "{ " + "claims { pageInfo { endCursor } } " * 140 + "}",
        "{ " + "claims(first: 1) { pageInfo { endCursor } } " * 90 + "}",
        "{ __schema { " + "types { name } " * 200 + "} }",
        "{ "
        + " ".join(f"...f{n}" for n in range(100))
        + " }"
        + " ".join(f"fragment f{n} on Query {{ ...f{n + 1} ...f{n + 1} }}" for n in range(100)),
        "query (" + " ".join(f"$a{n}: Int" for n in range(300)) + ") { __typename }",
        "{ __typename " + "@skip(if: true) " * 180 + "}",
        "#" * 60_000,
    ],
)
async def test_no_text_is_long_work(front: Any, text: str) -> None:
    await ask(front, "{ __typename }")
    began = time.process_time()

    assert (await ask(front, text)).status_code in (200, 400)
    assert time.process_time() - began < 1


async def test_introspection_is_answered_and_bounded(front: Any) -> None:
    schema = build_client_schema(await data(front, get_introspection_query()))

    assert schema.mutation_type is None
    assert schema.subscription_type is None
    within = "{ __schema { types { " + "fields { type { " * 6 + "name" + " } }" * 6 + " } } }"
    assert await code(front, within) == (400, "invalid-request")
