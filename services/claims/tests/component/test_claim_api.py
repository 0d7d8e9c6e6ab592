"""Claims over HTTP on a real store: what each role may, what comes back, and what is refused."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from carebus_claims.audit_trail import AuditTrail
from carebus_claims.cache import ClaimsCache
from carebus_claims.change_feed import ChangeFeed
from carebus_claims.claim_exports import safe_cell
from carebus_claims.claim_permissions import CLAIM_PERMISSIONS, Reach
from carebus_claims.claim_routes import claim_routes
from carebus_claims.claim_service import ClaimService
from carebus_claims.claim_store import ClaimStore, Tenant
from carebus_claims.settings import Settings
from carebus_common import mongo
from carebus_common.auth import ROLES, TokenVerifier
from carebus_common.http import create_app, openapi
from carebus_common.http.cursor import CursorCodec
from carebus_common.jwks import key_source
from carebus_common.redis_aside import RedisAside, connect
from carebus_common.testing.tokens import Issuer
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name

KEY = b"a key of the test"
LINES = [{"code": "410620009", "units": 1, "amount": "136.80"}, {"code": "99213", "units": 2, "amount": "0.2"}]


@dataclass
class Api:
    http: httpx.AsyncClient
    issuer: Issuer
    database: mongo.Database
    app: Any
    feed: ChangeFeed

    def token(self, role: str = "admin", organization: str = "org-a", **claims: Any) -> dict[str, str]:
        return {"Authorization": self.issuer.bearer(organization, [role], **claims)}

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        role: str = "admin",
        organization: str = "org-a",
        headers: dict[str, str] | None = None,
        sub: str = "u-1",
        **claims: Any,
    ) -> httpx.Response:
        sent = {**self.token(role, organization, sub=sub, **claims), **(headers or {})}
        return await self.http.request(method, path, json=body, headers=sent)

    async def create(self, **fields: Any) -> dict[str, Any]:
        answer = await self.ask("POST", "/claims", {"patientId": "p1", "currency": "CAD", "lines": LINES, **fields})
        assert answer.status_code == 201, answer.text
        claim: dict[str, Any] = answer.json()["data"]
        return claim


@pytest_asyncio.fixture(loop_scope="session")
async def api(stack: StackUrls, issuer: Issuer, jwks: str) -> AsyncIterator[Api]:
    settings = Settings(mongo_url=stack.mongo_url, jwks=jwks, claims_database=random_name("claims"))
    client = mongo.connect(settings, app_name="test")
    database = client[settings.claims_database]
    redis = RedisAside(connect(stack.redis_url, timedelta(seconds=2)))
    # The organizations of all tests have the same names; what another test has kept is refused.
    cache = ClaimsCache(redis, secrets.token_bytes())
    store = ClaimStore(database, audit_key=KEY, writing=cache.writing)
    await store.create_indexes()
    keys = key_source(settings.jwks)
    await keys.start()
    feed = ChangeFeed()
    app = create_app(title="t", version="1", settings=settings, verifier=TokenVerifier(keys, settings))
    app.include_router(claim_routes(ClaimService(store, cache=cache), CursorCodec.of(settings, service="claims"), feed))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://claims") as http:
        yield Api(http, issuer, database, app, feed)
    feed.close()
    await keys.stop()
    await cache.close()
    await redis.close()
    await client.drop_database(settings.claims_database)
    await client.close()


async def whole(api: Api) -> int:
    found = await AuditTrail(api.database, KEY).verify("org-a")
    assert found.faults == []
    return found.entries


async def test_who_may_not_see_a_claim_does_not_see_it_in_the_cache_either(api: Api) -> None:
    claim = await api.create(assignedProcessorId="u-7", providerId="dr-1")
    path = f"/claims/{claim['claimId']}"
    for _ in range(2):
        for role, sub, organization, status in (
            ("admin", "u-1", "org-a", 200),
            ("processor", "u-7", "org-a", 200),
            ("processor", "u-8", "org-a", 404),
            ("provider", "dr-2", "org-a", 404),
            ("admin", "u-1", "org-b", 404),
        ):
            got = await api.ask("GET", path, role=role, sub=sub, organization=organization)
            assert got.status_code == status, (role, sub, organization)
            listed = await api.ask("GET", "/claims", role=role, sub=sub, organization=organization)
            assert len(listed.json()["data"]) == (status == 200), (role, sub, organization)
    taken = await api.ask("POST", f"{path}/assign", {"processorId": "u-8"})
    assert taken.status_code == 200
    for sub, status in (("u-7", 404), ("u-8", 200)):
        assert (await api.ask("GET", path, role="processor", sub=sub)).status_code == status
        listed = await api.ask("GET", "/claims", role="processor", sub=sub)
        assert len(listed.json()["data"]) == (status == 200)


async def test_a_claim_goes_from_submission_to_payment_with_an_audit_of_each_step(api: Api) -> None:
    claim = await api.create(assignedProcessorId="u-7")
    assert (claim["status"], claim["total"], claim["paid"], claim["version"]) == ("submitted", "137.00", "0.00", 1)
    path = f"/claims/{claim['claimId']}"
    got = await api.ask("GET", path)
    assert (got.json()["data"], got.headers["etag"]) == (claim, '"1"')
    for number, status in enumerate(("under_review", "pending", "approved"), 2):
        moved = await api.ask(
            "POST", f"{path}/status", {"status": status, "reason": "as it should"}, sub="u-7", role="processor"
        )
        assert (moved.status_code, moved.json()["data"]["version"]) == (200, number)
    assert (await api.ask("PATCH", path, {"version": 4, "payerId": "x"})).json()["error"]["code"] == "claim-immutable"
    assert (await api.ask("POST", f"{path}/payment", {"amount": "137.01"})).status_code == 422
    paid = await api.ask("POST", f"{path}/payment", {"amount": "100.5"})
    assert (paid.json()["data"]["status"], paid.json()["data"]["paid"]) == ("paid", "100.50")
    audit = (await api.ask("GET", f"{path}/audit")).json()["data"]
    assert [entry["action"] for entry in audit] == ["created", *["status-changed"] * 3, "paid"]
    assert audit[1]["actor"] == {"id": "u-7", "role": "processor"}
    assert {"path": "status", "before": "submitted", "after": "under_review"} in audit[1]["changes"]
    assert await whole(api) == 5


async def test_only_the_table_of_transitions_is_followed(api: Api) -> None:
    claim = await api.create()
    for status in ("pending", "approved", "denied"):
        refused = await api.ask("POST", f"/claims/{claim['claimId']}/status", {"status": status, "reason": "r"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "transition-not-allowed")


async def test_a_change_needs_the_version_that_was_read(api: Api) -> None:
    claim = await api.create()
    path = f"/claims/{claim['claimId']}"
    assert (await api.ask("PATCH", path, {"payerId": "x"})).status_code == 400
    changed = await api.ask("PATCH", path, {"payerId": "x"}, headers={"If-Match": '"1"'})
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    for headers, body, status in (
        ({"If-Match": '"1"'}, {"payerId": "y"}, 409),
        ({}, {"payerId": "y", "version": 1}, 409),
        ({"If-Match": "2"}, {"payerId": "y"}, 400),
        ({"If-Match": '"2"'}, {"payerId": "y", "version": 1}, 400),
    ):
        assert (await api.ask("PATCH", path, body, headers=headers)).status_code == status
    emptied = await api.ask("PATCH", path, {"payerId": None, "version": 2})
    assert emptied.json()["data"]["payerId"] is None


async def test_of_fifty_concurrent_patches_exactly_one_wins_each_version(api: Api) -> None:
    claim = await api.create()
    path = f"/claims/{claim['claimId']}"
    for version in (1, 2):
        patches = [api.ask("PATCH", path, {"payerId": f"payer-{version}-{n}", "version": version}) for n in range(50)]
        statuses = [answer.status_code for answer in await asyncio.gather(*patches)]
        assert (statuses.count(200), statuses.count(409)) == (1, 49)
    assert await whole(api) == 3


async def test_a_bad_item_does_not_sink_the_others(api: Api) -> None:
    known, twice = str(uuid4()), str(uuid4())
    ordinary = {"patientId": "p1", "currency": "CAD", "lines": LINES}
    await api.create(claimId=known)
    items = [
        {**ordinary, "claimId": known},
        {**ordinary, "claimId": twice},
        {**ordinary, "claimId": twice},
        {**ordinary, "lines": [{"code": "a", "amount": "1.005"}]},
        {**ordinary, "lines": [{"code": "a", "amount": 1.5}]},
        "nonsense",
        ordinary,
    ]
    answer = (await api.ask("POST", "/claims/bulk", {"claims": items})).json()["data"]
    assert [result["status"] for result in answer["results"]] == [409, 201, 409, 400, 400, 400, 201]
    assert (answer["succeeded"], answer["failed"]) == (2, 5)
    new = answer["results"][6]["claim"]
    updates = [
        {"claimId": new["claimId"], "status": "under_review", "reason": "r"},
        {"claimId": twice, "set": {"payerId": "x"}, "version": 1},
        {"claimId": known, "set": {"payerId": "x"}, "version": 9},
        {"claimId": str(uuid4()), "set": {"payerId": "x"}},
        {"claimId": twice, "assignedProcessorId": "u-2"},
        {"claimId": "nonsense"},
    ]
    answer = (await api.ask("PATCH", "/claims/bulk", {"updates": updates})).json()["data"]
    assert [result["status"] for result in answer["results"]] == [200, 200, 409, 404, 409, 400]
    assert await whole(api) == 5


@pytest.mark.parametrize("count", [0, 1001])
async def test_a_bulk_request_holds_one_to_a_thousand(api: Api, count: int) -> None:
    item = {"patientId": "p1", "currency": "CAD", "lines": LINES}
    assert (await api.ask("POST", "/claims/bulk", {"claims": [item] * count})).status_code == 400


async def test_a_thousand_claims_are_created_and_changed_at_once(api: Api) -> None:
    item = {"patientId": "p1", "currency": "CAD", "lines": LINES}
    created = (await api.ask("POST", "/claims/bulk", {"claims": [item] * 1000})).json()["data"]
    assert created["succeeded"] == 1000
    updates = [{"claimId": result["claimId"], "status": "under_review", "reason": "r"} for result in created["results"]]
    assert (await api.ask("PATCH", "/claims/bulk", {"updates": updates})).json()["data"]["succeeded"] == 1000
    assert await whole(api) == 2000


async def test_a_repeated_request_gets_the_first_answer_and_has_one_effect(api: Api) -> None:
    body = {"patientId": "p1", "currency": "CAD", "lines": LINES}
    key = {"Idempotency-Key": "k-1"}
    answers = await asyncio.gather(*(api.ask("POST", "/claims", body, headers=key) for _ in range(10)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    first = next(answer for answer in answers if answer.status_code == 201)
    again = await api.ask("POST", "/claims", body, headers=key)
    assert (again.status_code, again.content) == (201, first.content)
    assert (again.headers["idempotency-replayed"], again.headers["location"]) == ("true", first.headers["location"])
    other = await api.ask("POST", "/claims", {**body, "patientId": "p2"}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency-key-reused")
    assert (await api.ask("POST", "/claims", body, headers={"Idempotency-Key": "x" * 256})).status_code == 400
    assert await whole(api) == 1


async def test_a_refused_request_may_be_sent_again_with_its_key(api: Api) -> None:
    claim = await api.create()
    path, key = f"/claims/{claim['claimId']}/status", {"Idempotency-Key": "k"}
    assert (await api.ask("POST", path, {"status": "pending", "reason": "r"}, headers=key)).status_code == 422
    await api.ask("POST", path, {"status": "under_review", "reason": "r"})
    assert (await api.ask("POST", path, {"status": "pending", "reason": "r"}, headers=key)).status_code == 200


async def test_pages_go_on_where_they_ended_and_belong_to_their_caller(api: Api) -> None:
    for n in range(7):
        await api.create(patientId=f"p{n % 2}", lines=[{"code": "a", "amount": str(n)}])
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await api.ask("GET", f"/claims?sort=total&limit=3{cursor}")).json()
        seen += [claim["total"] for claim in page["data"]]
        if page["page"]["next"] is None:
            break
        cursor = f"&cursor={page['page']['next']}"
    assert seen == [f"{n}.00" for n in range(7)]
    theirs = await api.ask("GET", f"/claims?sort=total&limit=3{cursor}", organization="org-b")
    assert theirs.status_code == 404
    assert (await api.ask("GET", f"/claims?sort=-total&limit=3{cursor}")).status_code == 400
    assert len((await api.ask("GET", "/claims?patientId=p1&minTotal=1&maxTotal=3")).json()["data"]) == 2
    assert (await api.ask("GET", "/claims?patientId=nobody")).json() == {"data": [], "page": {"next": None}}


@pytest.mark.parametrize(
    "query",
    [
        "from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z",
        "minTotal=5&maxTotal=4",
        "minTotal=1e3",
        "status=lost",
        "claimId=x",
        "sort=patientId",
        "limit=0",
        "cursor=nonsense",
        "unknown=1",
        "status=paid&status=denied",
    ],
)
async def test_a_query_that_makes_no_sense_is_refused(api: Api, query: str) -> None:
    assert (await api.ask("GET", f"/claims?{query}")).status_code == 400


async def test_figures_are_exact_as_of_the_last_change(api: Api) -> None:
    one = await api.create(assignedProcessorId="u-7")
    await api.create(assignedProcessorId="u-8")
    await api.ask("POST", f"/claims/{one['claimId']}/status", {"status": "under_review", "reason": "r"})
    figures = (await api.ask("GET", "/claims/dashboard")).json()["data"]
    by_status = {row["status"]: (row["count"], row["total"]) for row in figures["statuses"]}
    assert by_status["submitted"] == by_status["under_review"] == (1, "137.00")
    assert figures["ageing"][0] == {"fromDays": 0, "toDays": 7, "count": 2}
    assert figures["workload"] == [{"processorId": "u-7", "open": 1}, {"processorId": "u-8", "open": 1}]
    own = (await api.ask("GET", "/claims/dashboard", role="processor", sub="u-7")).json()["data"]
    assert (own["workload"], own["statuses"]) == ([{"processorId": "u-7", "open": 1}], [])


async def test_an_export_has_every_claim_and_no_formula(api: Api) -> None:
    evil = '=HYPERLINK("http://x","y")'
    claim = await api.create(externalId=evil)
    text = (await api.ask("GET", "/claims/export?format=csv")).text
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert (row["claimId"], row["externalId"], row["total"]) == (claim["claimId"], f"'{evil}", "137.00")
    lines = (await api.ask("GET", "/claims/export")).text.splitlines()
    assert [json.loads(line) for line in lines] == [claim]
    assert (await api.ask("GET", "/claims/export", organization="org-b")).text == ""


@pytest.mark.parametrize("cell", ["=1", "+1", "-1", "@x", "\tx", "\rx"])
def test_a_cell_that_a_spreadsheet_would_run_is_quoted(cell: str) -> None:
    assert safe_cell(cell) == f"'{cell}"


async def test_changes_are_streamed_in_order_and_resumed_after_the_last_one_seen(api: Api) -> None:
    claims = ClaimStore(api.database, audit_key=KEY).of(Tenant("org-a"))

    async def take(after: int, count: int) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        until = datetime.now(UTC) + timedelta(seconds=20)
        async for part in api.feed.stream(claims, after, lambda entry: entry.patient_id == "p1", until):
            for event in part.decode().split("\n\n"):
                if "data: " in event:
                    data = json.loads(event.split("data: ")[1])
                    assert event.startswith(f"id: {data['seq']}\nevent: claim\n")
                    found.append((data["seq"], data["claim"]["claimId"]))
            if len(found) >= count:
                break
        return found

    first = await api.create()
    following = asyncio.create_task(take(1, 2))
    await api.create(patientId="p2")
    two, three = await api.create(), await api.create()
    assert await following == [(3, two["claimId"]), (4, three["claimId"])]
    assert (await take(0, 1))[0] == (1, first["claimId"])
    for wrong in ("x", "-1", "5", "9" * 30):
        refused = await api.ask("GET", "/claims/changes", headers={"Last-Event-ID": wrong})
        assert refused.status_code == 400


def _routes(api: Api) -> list[tuple[str, str]]:
    return [
        (method.upper(), path)
        for path, operations in openapi(api.app)["paths"].items()
        for method in operations
        if method in {"get", "post", "patch", "put", "delete"}
    ]


async def test_every_route_admits_the_roles_of_its_row_and_shows_what_they_reach(api: Api) -> None:
    assert {f"{method} {path}" for method, path in _routes(api)} == set(CLAIM_PERMISSIONS)
    mine = await api.create(assignedProcessorId="me", providerId="me", patientId="me")
    others = await api.create(assignedProcessorId="else", providerId="else", patientId="else")
    bodies = {
        "POST /claims": {"patientId": "p1", "currency": "CAD", "lines": LINES},
        "PATCH /claims/{claimId}": {"version": 99, "payerId": "x"},
        "POST /claims/{claimId}/status": {"status": "pending", "reason": "r", "version": 99},
        "POST /claims/{claimId}/assign": {"processorId": "me", "version": 99},
        "POST /claims/{claimId}/payment": {"amount": "1.00", "version": 99},
        "POST /claims/bulk": {"claims": ["bad"]},
        "PATCH /claims/bulk": {"updates": ["bad"]},
    }
    for method, path in _routes(api):
        route = f"{method} {path}"
        if route == "GET /claims/changes":
            continue  # it has no end
        for role in sorted(ROLES):
            reach = CLAIM_PERMISSIONS[route].get(role)
            for claim, organization in ((mine, "org-a"), (others, "org-a"), (mine, "org-b")):
                answer = await api.ask(
                    method,
                    path.replace("{claimId}", claim["claimId"]),
                    bodies.get(route),
                    role=role,
                    organization=organization,
                    sub="me",
                    patientId="me",
                )
                told = (route, role, claim is mine, organization, answer.status_code)
                if reach is None:
                    assert answer.status_code == 403, told
                elif "{claimId}" not in path:
                    assert answer.status_code in (200, 201), told
                    if method == "GET" and path in ("/claims", "/claims/export"):
                        assert (others["claimId"] in answer.text) == (organization == "org-a" and reach is Reach.ALL), (
                            told
                        )
                        assert (mine["claimId"] in answer.text) == (organization == "org-a"), told
                elif organization == "org-b" or (reach is not Reach.ALL and claim is others):
                    assert answer.status_code == 404, told
                else:
                    assert answer.status_code in (200, 409), told


def test_the_readme_has_the_table_of_permissions() -> None:
    roles = ("admin", "processor", "provider", "patient")
    lines = [
        f"| `{route}` | " + " | ".join(row[role].value if role in row else "403" for role in roles) + " |"
        for route, row in CLAIM_PERMISSIONS.items()
    ]
    assert "\n".join(lines) in (Path(__file__).parents[2] / "README.md").read_text()
