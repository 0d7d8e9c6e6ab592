"""Claims as staff reach them: GraphQL beside REST, changes and exports, all with the caller's own permissions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from carebus_local.keys import mint
from carebus_local.system import System
from carebus_local.testing import random_name

ALL = "{ claims(first: 200) { edges { node { claimId patientId total } } } }"
ONE = "query ($id: ID!) { claim(id: $id) { claimId total status version } }"


class Office:
    """One organization's staff at the gateway."""

    def __init__(self, system: System, http: httpx.AsyncClient) -> None:
        self.organization_id = random_name("office")
        self.http = http
        self._system = system
        self.claims: list[dict[str, Any]] = []

    def token(self, role: str, subject: str, patient_id: str | None = None) -> dict[str, str]:
        token = mint(self._system.state_dir, self.organization_id, [role], subject=subject, patient_id=patient_id)
        return {"Authorization": f"Bearer {token}"}

    @property
    def admin(self) -> dict[str, str]:
        return self.token("admin", "boss")

    async def create(self, count: int) -> None:
        claims = [
            {
                "claimId": str(uuid4()),
                "patientId": f"p-{number % 3}",
                "providerId": f"d-{number % 2}",
                "assignedProcessorId": f"w-{number % 5}",
                "currency": "CAD",
                "lines": [{"code": "15804", "amount": f"{number}.10"}],
            }
            for number in range(count)
        ]
        answer = await self.rest("POST", "/claims/bulk", self.admin, {"claims": claims})
        assert answer.json()["data"]["succeeded"] == count, answer.text
        self.claims = claims

    async def rest(self, method: str, path: str, token: dict[str, str], body: Any = None) -> httpx.Response:
        url = f"{self._system.urls['gateway']}{path}"
        return await self.http.request(method, url, json=body, headers=token)

    async def ask(self, token: dict[str, str], query: str, **variables: Any) -> Any:
        answer = await self.rest("POST", "/graphql", token, {"query": query, "variables": variables})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def seen(self, token: dict[str, str]) -> set[str]:
        answered = await self.ask(token, ALL)
        assert "errors" not in answered, answered
        return {edge["node"]["claimId"] for edge in answered["data"]["claims"]["edges"]}


@pytest_asyncio.fixture(loop_scope="session")
async def office(system: System) -> AsyncIterator[Office]:
    async with httpx.AsyncClient(timeout=15) as http:
        office = Office(system, http)
        await office.create(30)
        yield office


CALLERS: list[tuple[str, str, str | None, dict[str, str]]] = [
    ("admin", "boss", None, {}),
    ("processor", "w-3", None, {"assignedProcessorId": "w-3"}),
    ("processor", "nobody", None, {"assignedProcessorId": "nobody"}),
    ("provider", "d-1", None, {"providerId": "d-1"}),
    ("patient", "u-1", "p-2", {"patientId": "p-2"}),
]


@pytest.mark.parametrize(("role", "subject", "patient_id", "own"), CALLERS)
async def test_graphql_shows_each_role_what_rest_shows_it(
    office: Office, role: str, subject: str, patient_id: str | None, own: dict[str, str]
) -> None:
    token = office.token(role, subject, patient_id)
    mine = {c["claimId"] for c in office.claims if own.items() <= c.items()}

    assert await office.seen(token) == mine
    listed = await office.rest("GET", "/claims?limit=200", token)
    assert {claim["claimId"] for claim in listed.json()["data"]} == mine
    # By id, alone and together, what is not theirs is what is not there.
    ids = [claim["claimId"] for claim in office.claims[:19]] + [str(uuid4())]
    fields = " ".join(f'c{n}: claim(id: "{claim_id}") {{ claimId }}' for n, claim_id in enumerate(ids))
    together = await office.ask(token, f"{{ {fields} }}")
    assert "errors" not in together
    found = [one and one["claimId"] for one in together["data"].values()]
    assert found == [claim_id if claim_id in mine else None for claim_id in ids]
    for claim_id in (ids[0], ids[1], ids[-1]):
        alone = await office.ask(token, ONE, id=claim_id)
        assert alone.keys() == {"data"}
        assert (alone["data"]["claim"] is not None) == (claim_id in mine)


async def test_another_organization_sees_nothing_by_any_way(system: System, office: Office) -> None:
    async with httpx.AsyncClient(timeout=15) as http:
        other = Office(system, http)
        assert await other.seen(other.admin) == set()
        claim = office.claims[0]
        text = f"""{{ claim(id: "{claim["claimId"]}") {{ total }}
            patient(id: "{claim["patientId"]}") {{ claims {{ edges {{ cursor }} }} summary {{ eventTotal }} }}
            claims(filter: {{patientId: "{claim["patientId"]}"}}) {{ edges {{ cursor }} }} }}"""
        assert await other.ask(other.admin, text) == {
            "data": {
                "claim": None,
                "patient": {"claims": {"edges": []}, "summary": None},
                "claims": {"edges": []},
            }
        }
        # A cursor of theirs leads nowhere here.
        paged = await office.ask(office.admin, "{ claims(first: 5) { pageInfo { endCursor } } }")
        cursor = paged["data"]["claims"]["pageInfo"]["endCursor"]
        refused = await other.ask(
            other.admin, "query ($a: String) { claims(first: 5, after: $a) { edges { cursor } } }", a=cursor
        )
        assert refused["data"] == {"claims": None}


async def test_who_has_no_part_in_claims_is_told_so(office: Office) -> None:
    for role in ("event-sender", "operator", "operator-phi"):
        answered = await office.ask(office.token(role, "u"), ALL)
        assert answered["data"] == {"claims": None}
        assert answered["errors"][0]["extensions"]["code"] == "forbidden"


async def test_pages_and_edges_lead_through_all_of_a_list(office: Office) -> None:
    text = """query ($after: String) { claims(first: 7, after: $after, sort: TOTAL_DESC) {
        edges { cursor node { total } } pageInfo { hasNextPage endCursor } } }"""
    wanted = [f"{number}.10" for number in reversed(range(30))]
    seen: list[str] = []
    cursors: list[str] = []
    after = None
    while True:
        page = (await office.ask(office.admin, text, after=after))["data"]["claims"]
        seen += [edge["node"]["total"] for edge in page["edges"]]
        cursors += [edge["cursor"] for edge in page["edges"]]
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert seen == wanted
    for place in (0, 3, 6, 11, 28, 29):
        page = (await office.ask(office.admin, text, after=cursors[place]))["data"]["claims"]
        assert [edge["node"]["total"] for edge in page["edges"]] == wanted[place + 1 : place + 8]


async def test_filters_do_what_they_say(office: Office) -> None:
    text = """{ claims(filter: {status: SUBMITTED, patientId: "p-1", minTotal: "4.10", maxTotal: "10.10"},
        sort: TOTAL_ASC) { edges { node { total } } } }"""
    found = (await office.ask(office.admin, text))["data"]["claims"]["edges"]
    assert [edge["node"]["total"] for edge in found] == ["4.10", "7.10", "10.10"]
    none = await office.ask(office.admin, "{ claims(filter: {status: [PAID, DENIED]}) { edges { cursor } } }")
    assert none == {"data": {"claims": {"edges": []}}}
    reversed_range = await office.ask(
        office.admin, '{ claims(filter: {minTotal: "2", maxTotal: "1"}) { edges { cursor } } }'
    )
    assert reversed_range["errors"][0]["extensions"]["code"] == "invalid-request"


async def test_a_claims_audit_trail_is_for_those_who_may_read_it(office: Office) -> None:
    claim = office.claims[8]
    moved = await office.rest(
        "POST", f"/claims/{claim['claimId']}/status", office.admin, {"status": "under_review", "reason": "r"}
    )
    assert moved.status_code == 200, moved.text
    text = """query ($id: ID!, $after: String) { claim(id: $id) { status audit(first: 1, after: $after) {
        edges { node { action version reason actor { id role } changes { path before after } } }
        pageInfo { hasNextPage endCursor } } } }"""

    first = (await office.ask(office.admin, text, id=claim["claimId"]))["data"]["claim"]
    assert first["status"] == "UNDER_REVIEW"
    assert first["audit"]["edges"][0]["node"]["action"] == "created"
    following = first["audit"]["pageInfo"]["endCursor"]
    second = (await office.ask(office.admin, text, id=claim["claimId"], after=following))["data"]["claim"]["audit"]
    (entry,) = (edge["node"] for edge in second["edges"])
    assert (entry["action"], entry["version"], entry["actor"]) == ("status-changed", 2, {"id": "boss", "role": "admin"})
    assert {"path": "status", "before": "submitted", "after": "under_review"} in entry["changes"]
    assert not second["pageInfo"]["hasNextPage"]

    provider = await office.ask(office.token("provider", "d-0"), text, id=claim["claimId"])
    assert provider["data"]["claim"] == {"status": "UNDER_REVIEW", "audit": None}
    assert provider["errors"][0]["extensions"]["code"] == "forbidden"


async def test_a_change_comes_through_as_it_happens_and_an_export_whole(system: System, office: Office) -> None:
    claim = office.claims[3]
    gateway = system.urls["gateway"]
    async with (
        asyncio.timeout(20),
        office.http.stream("GET", f"{gateway}/claims/changes", headers=office.token("processor", "w-3")) as stream,
    ):
        assert stream.status_code == 200
        lines = stream.aiter_lines()
        await anext(lines)
        for changed in (office.claims[4], claim):
            body = {"status": "under_review", "reason": "seen"}
            await office.rest("POST", f"/claims/{changed['claimId']}/status", office.admin, body)
        async for line in lines:
            if line.startswith("data: "):
                # Of the two, the one that is assigned to it.
                assert json.loads(line.removeprefix("data: "))["claimId"] == claim["claimId"]
                break
    export = await office.rest("GET", "/claims/export?format=ndjson", office.token("provider", "d-1"))
    exported = {json.loads(line)["claimId"] for line in export.text.splitlines()}
    assert exported == {claim["claimId"] for claim in office.claims if claim["providerId"] == "d-1"}
    table = await office.rest("GET", "/claims/export?format=csv", office.admin)
    assert table.headers["content-type"].startswith("text/csv")
    assert len(table.text.splitlines()) == 31
