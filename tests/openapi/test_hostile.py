"""Claims and GraphQL through the gateway, as a hostile caller: every answer is a refusal, and nothing is changed."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio

from carebus_local.system import System
from carebus_local.testing import random_name

CANARY: Final = "Canary-Tremblay"
GOOD: Final = {"patientId": "p-1", "currency": "CAD", "lines": [{"code": "99213", "units": 1, "amount": "136.80"}]}

BAD_JSON: Final = {
    "duplicate key": b'{"patientId":"p","patientId":"q","currency":"CAD","lines":[{"code":"a","amount":"1"}]}',
    "NaN": b'{"patientId":"p","currency":"CAD","lines":[{"code":"a","amount":"1","units":NaN}]}',
    "overflow": b'{"patientId":"p","currency":"CAD","lines":[{"code":"a","amount":"1","units":1e999}]}',
    "2^63": b'{"patientId":"p","currency":"CAD","lines":[{"code":"a","amount":"1","units":9223372036854775808}]}',
    "huge number": b'{"patientId":"p","version":' + b"9" * 50_000 + b"}",
    "lone surrogate": b'{"patientId":"\\ud800","currency":"CAD","lines":[{"code":"a","amount":"1"}]}',
    "BOM": b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "operator as key": b'{"patientId":{"$ne":null},"currency":"CAD","lines":[{"code":"a","amount":"1"}]}',
    "NUL in a key": b'{"a\\u0000b":1}',
    "deep": b'{"lines":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "empty": b"",
    "no object": b"[]",
    "trailing": json.dumps(GOOD).encode() + b"{}",
    "invalid UTF-8": b'{"patientId":"\xff"}',
}
BAD_FIELDS: Final[list[dict[str, Any]]] = [
    {"organizationId": "other"},
    {"status": "paid"},
    {"version": 7},
    {"total": "0.00"},
    {"currency": "cad"},
    {"claimId": "not-a-uuid"},
    {"patientId": {"$ne": None}},
    {"patientId": ""},
    {"patientId": "x" * 129},
    {"externalId": "a\0b"},
    {"lines": []},
    *({"lines": [{"code": "a", "amount": amount}]} for amount in ("-1", "1e3", "NaN", "1.234", "10000000", "٣", 1, "")),
    *({"lines": [{"code": "a", "amount": "1", "units": units}]} for units in (0, -1, 1.5, "1", True, 10**6)),
    {"lines": [{"code": "a", "amount": "1"}] * 201},
]
BAD_QUERIES: Final = [
    "patientId[$ne]=x",
    "sort=$where",
    "sort=patientId",
    "limit=1e9",
    "limit=-1",
    "limit=0",
    "limit=201",
    "limit=%2B5",
    "limit=5&limit=6",
    "status=paid,void",
    "claimId=" + ",".join(["4c9a9d6e-6f2b-4c53-9d0f-0d2c7c1d3a11"] * 201),
    "claimId=x",
    "from=2026-01-01",
    "from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z",
    "minTotal=2&maxTotal=1",
    "minTotal=NaN",
    "minTotal=1e2",
    "organizationId=other",
    "patientId=%00",
    "patientId=%ED%A0%80",
    "cursor=" + "A" * 60,
    "cursor=%F0%9F%98%80",
]


class Tenant:
    """One organization's caller at the gateway."""

    def __init__(self, system: System, http: httpx.AsyncClient, organization: str, *roles: str) -> None:
        self.http = http
        self.headers = {"Authorization": f"Bearer {system.token(organization, roles, subject='someone')}"}

    async def __call__(self, method: str, url: str, body: Any = None, **headers: str) -> httpx.Response:
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if content is not None else {}
        return await self.http.request(method, url, content=content, headers={**self.headers, **kind, **headers})

    async def claim(self, **fields: Any) -> dict[str, Any]:
        answer = await self("POST", "/claims", {**GOOD, **fields})
        assert answer.status_code == 201, answer.text
        claim: dict[str, Any] = answer.json()["data"]
        return claim

    async def ask(self, query: str, **variables: Any) -> httpx.Response:
        return await self("POST", "/graphql", {"query": query, "variables": variables})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def http(system: System) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=system.urls["gateway"], timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def ours(system: System, http: httpx.AsyncClient) -> Tenant:
    return Tenant(system, http, random_name("ours"), "admin")


@pytest.fixture(scope="module")
def theirs(system: System, http: httpx.AsyncClient) -> Tenant:
    return Tenant(system, http, random_name("theirs"), "admin")


def refused(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text
    error = answer.json()["error"]
    assert error["code"]
    assert CANARY not in answer.text


@pytest.mark.parametrize("what", BAD_JSON)
async def test_json_that_has_no_one_reading_is_refused_everywhere(ours: Tenant, what: str) -> None:
    claim = await ours.claim()
    for method, path in [
        ("POST", "/claims"),
        ("POST", "/claims/bulk"),
        ("PATCH", "/claims/bulk"),
        ("PATCH", f"/claims/{claim['claimId']}"),
        ("POST", f"/claims/{claim['claimId']}/status"),
        ("POST", f"/claims/{claim['claimId']}/assign"),
        ("POST", f"/claims/{claim['claimId']}/payment"),
    ]:
        refused(await ours(method, path, BAD_JSON[what]), 400)
    answer = await ours("POST", "/graphql", BAD_JSON[what])
    assert answer.status_code == 400, answer.text
    assert (await ours("GET", f"/claims/{claim['claimId']}")).json()["data"] == claim


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=str)
async def test_a_field_that_breaks_its_rule_is_refused_without_its_value(ours: Tenant, fields: dict[str, Any]) -> None:
    refused(await ours("POST", "/claims", {**GOOD, "description": CANARY, **fields}), 400)
    refused(await ours("POST", "/claims", {**GOOD, **fields}), 400)
    answer = await ours("POST", "/claims/bulk", {"claims": [{**GOOD, **fields}, GOOD]})
    if "$ne" in str(fields):
        refused(answer, 400)  # No JSON that anybody may send: there are no items.
        return
    results = answer.json()["data"]["results"]
    assert [result["status"] for result in results] == [400, 201]


@pytest.mark.parametrize("query", BAD_QUERIES, ids=lambda query: query[:40])
@pytest.mark.parametrize("path", ["/claims", "/claims/export"])
async def test_a_query_that_breaks_a_rule_is_refused(ours: Tenant, path: str, query: str) -> None:
    refused(await ours("GET", f"{path}?{query}"), 400)


async def test_other_media_types_and_bodies_too_large_are_refused(ours: Tenant) -> None:
    for kind in (
        "text/plain",
        "application/xml",
        "application/json; charset=utf-16",
        "",
        "application/merge-patch+json",
    ):
        for path in ("/claims", "/claims/bulk", "/graphql"):
            refused(await ours("POST", path, GOOD, **{"Content-Type": kind}), 415)
    for path in ("/claims", "/claims/bulk", "/graphql"):
        refused(await ours("POST", path, b'{"a":"' + b"x" * 10_000_000 + b'"}'), 413)
    refused(await ours("GET", "/claims?patientId=x", **{"X-Padding": "x" * 20_000}), 431)
    refused(await ours("POST", "/claims/bulk", {"claims": [GOOD] * 1001}), 400, 413)


async def test_another_organizations_claim_does_not_exist_by_any_way(ours: Tenant, theirs: Tenant) -> None:
    secret = await theirs.claim(patientId=CANARY, externalId="ext-1")
    claim_id, version = secret["claimId"], secret["version"]
    nothing = [
        await ours(method, f"/claims/{claim_id}{tail}", body)
        for method, tail, body in [
            ("GET", "", None),
            ("GET", "/audit", None),
            ("PATCH", "", {"version": version, "payerId": "x"}),
            ("POST", "/status", {"status": "under_review", "reason": "x"}),
            ("POST", "/assign", {"processorId": "x"}),
            ("POST", "/payment", {"amount": "1.00"}),
        ]
    ]
    for answer in nothing:
        refused(answer, 404)
    listed = await ours("GET", f"/claims?claimId={claim_id}")
    assert listed.json()["data"] == []
    forged = {"X-Organization-Id": "theirs", "X-User-Id": "root", "X-Forwarded-For": "127.0.0.1"}
    refused(await ours("GET", f"/claims/{claim_id}", **forged), 404)
    bulk = await ours("PATCH", "/claims/bulk", {"updates": [{"claimId": claim_id, "set": {"payerId": "x"}}]})
    assert [result["status"] for result in bulk.json()["data"]["results"]] == [404]
    asked = await ours.ask("query($id: ID!) { claim(id: $id) { claimId patientId } }", id=claim_id)
    assert asked.json()["data"] == {"claim": None}
    asked = await ours.ask("query($id: ID!) { patient(id: $id) { patientId claims { edges { cursor } } } }", id=CANARY)
    assert asked.json()["data"]["patient"]["claims"] == {"edges": []}
    # GraphQL takes a patient's id as it comes and looks when something of it is asked for: for theirs as for nobody's.
    nobody = await ours.ask('query { patient(id: "nobody") { patientId claims { edges { cursor } } } }')
    assert nobody.text == asked.text.replace(CANARY, "nobody")
    assert CANARY not in (await ours("GET", "/claims/export")).text
    # What is theirs stays so, and an externalId of theirs is free for us.
    assert (await theirs("GET", f"/claims/{claim_id}")).json()["data"] == secret
    await ours.claim(externalId="ext-1")
    # An id of theirs is no id of ours either: it is as free as any other.
    assert (await ours("POST", "/claims", {**GOOD, "claimId": claim_id})).status_code == 201
    assert (await theirs("GET", f"/claims/{claim_id}")).json()["data"] == secret


async def test_an_external_id_that_is_taken_is_a_conflict_and_no_fault(ours: Tenant) -> None:
    taken = random_name("ext")
    await ours.claim(externalId=taken)
    other = await ours.claim()
    refused(await ours("POST", "/claims", {**GOOD, "externalId": taken}), 409)
    refused(await ours("PATCH", f"/claims/{other['claimId']}", {"version": 1, "externalId": taken}), 409)
    update = {"claimId": other["claimId"], "set": {"externalId": taken}}
    answer = await ours("PATCH", "/claims/bulk", {"updates": [update]})
    assert [result["status"] for result in answer.json()["data"]["results"]] == [409]


async def test_cursors_serve_whom_and_what_they_were_made_for(ours: Tenant, theirs: Tenant) -> None:
    for tenant in (ours, theirs):
        for _ in range(2):
            await tenant.claim()
    cursor = (await theirs("GET", "/claims?limit=1")).json()["page"]["next"]
    refused(await ours("GET", f"/claims?limit=1&cursor={cursor}"), 400, 404)
    refused(await theirs("GET", f"/claims?limit=1&status=paid&cursor={cursor}"), 400)
    for forged in (cursor[:-1], cursor[:20] + "A" + cursor[21:], cursor[::-1], "x" * 2000):
        refused(await theirs("GET", f"/claims?limit=1&cursor={forged}"), 400)
    asked = await ours.ask("query($c: String) { claims(first: 1, after: $c) { edges { cursor } } }", c=cursor)
    assert asked.json()["errors"]
    assert asked.json()["data"] in (None, {"claims": None})


@pytest.mark.parametrize("last", ["-1", "1.5", "x", "99999999999", "1" * 40, "0x10", ""])
async def test_a_stream_begins_behind_an_id_of_its_own_only(ours: Tenant, last: str) -> None:
    refused(await ours("GET", "/claims/changes", **{"Last-Event-ID": last}), 400)


async def test_a_stream_shows_only_the_callers_organization(ours: Tenant, theirs: Tenant) -> None:
    await theirs.claim(patientId=CANARY)
    mine = await ours.claim()
    headers = {**ours.headers, "Last-Event-ID": "0"}
    received = ""
    async with asyncio.timeout(15), ours.http.stream("GET", "/claims/changes", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for part in answer.aiter_text():
            received += part
            if mine["claimId"] in received:
                break
    assert CANARY not in received
    refused(await ours("POST", "/claims/changes", {}), 405)


async def test_a_spreadsheet_runs_nothing_of_an_export(ours: Tenant) -> None:
    attacks = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=cmd|"/C calc"!A0', "a\r\n=1,=2"]
    for number, attack in enumerate(attacks):
        await ours.claim(payerId=attack, externalId=f"{attack}{number}")
    text = (await ours("GET", "/claims/export?format=csv")).text
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    found = {row["payerId"] for row in rows}
    for attack in attacks:
        assert (attack if attack.startswith("a") else f"'{attack}") in found
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert {row["total"] for row in rows} >= {"136.80"}


@pytest.mark.parametrize(
    "query",
    [
        "{ " + "claims { edges { node { patient { claims { edges { node { patient { " * 3 + "x" + " }" * 25,
        "{ " + " ".join(f"a{n}: claims(first: 200) {{ edges {{ node {{ claimId }} }} }}" for n in range(500)) + " }",
        "{ claims(first: 100000) { edges { node { claimId } } } }",
        "fragment A on Query { ...B } fragment B on Query { ...A } { ...A }",
        "{" * 20_000,
        "{ __schema { types { fields { type { fields { type { fields { type { fields { name } } } } } } } } } }",
        "mutation { x }",
        "subscription { x }",
        "",
        '{ claim(id: "\\u0000") { claimId } claim2: nothing }',
    ],
    ids=lambda query: query[:30],
)
async def test_a_query_out_of_bounds_is_refused_before_it_costs_anything(ours: Tenant, query: str) -> None:
    answer = await ours.ask(query)
    assert answer.status_code in (400, 422) or answer.json().get("errors"), answer.text
    assert answer.status_code < 500
    assert "internal" not in answer.text


async def test_persisted_queries_are_found_by_their_own_hash_only(ours: Tenant) -> None:
    for value in ("0" * 64, "x", "../../etc", "", 5, None, {"$ne": 1}):
        persisted = {"version": 1, "sha256Hash": value}
        body = {"query": "{ claims { edges { cursor } } }", "extensions": {"persistedQuery": persisted}}
        answer = await ours("POST", "/graphql", body)
        assert answer.json().get("errors"), value
        assert answer.status_code < 500


async def test_roles_that_may_not_are_refused_and_nothing_changes(
    system: System, http: httpx.AsyncClient, ours: Tenant
) -> None:
    organization = random_name("roles")
    admin = Tenant(system, http, organization, "admin")
    claim = await admin.claim(assignedProcessorId="somebody-else")
    path = f"/claims/{claim['claimId']}"
    for role in ("processor", "provider", "event-sender", "operator"):
        caller = Tenant(system, http, organization, role)
        refused(await caller("GET", path), 403, 404)
        refused(await caller("PATCH", path, {"version": 1, "status": "paid", "organizationId": "b"}), 400, 403, 404)
        refused(await caller("POST", f"{path}/payment", {"amount": "1.00"}), 403)
        refused(await caller("POST", "/claims", GOOD), 403)
    for token in ("x", "a.b.c", "Bearer x", "a.b.c.d"):
        refused(await http.get(path, headers={"Authorization": f"Bearer {token}"}), 401)
    assert (await admin("GET", path)).json()["data"] == claim


async def test_nothing_of_it_was_a_fault_or_reached_a_log(system: System) -> None:
    for log in (system.state_dir / "logs").glob("*.log"):
        text = log.read_text(errors="replace")
        for word in ("request-failed", "graphql-failed", "Traceback"):
            assert word not in text, log.name
        if log.stem in ("gateway", "ingest", "processor", "claims"):
            assert CANARY not in text, log.name
