"""What `POST /graphql` answers, and how often claims is asked for it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from .kit import ENTRY, Claims, claim, claim_id, code, data


async def test_a_claim_is_read_with_all_that_belongs_to_it(front: Any, claims: Claims) -> None:
    text = """query ($id: ID!) { claim(id: $id) {
        claimId version status total paid currency statusReason lines { code units amount }
        patient { patientId summary { eventTotal counts { type count } stay { status } } }
        audit(first: 1) { edges { node { seq at action version actor { id role } cause { kind id }
            changes { path before after } } } pageInfo { hasNextPage } } } }"""

    read = (await data(front, text, {"id": claim_id(7)}))["claim"]

    assert (read["claimId"], read["status"], read["total"]) == (claim_id(7), "PENDING", "136.80")
    assert read["lines"] == [{"code": "15804", "units": 1, "amount": "136.80"}]
    assert read["patient"] == {
        "patientId": "p-7",
        "summary": {"eventTotal": 1, "counts": [{"type": "admission", "count": 1}], "stay": None},
    }
    assert read["audit"]["edges"][0]["node"]["changes"] == ENTRY["changes"]
    assert read["audit"]["pageInfo"] == {"hasNextPage": False}
    assert sorted(request.target.split("?")[0] for request in front.claims.requests) == [
        f"/claims/{claim_id(7)}",
        f"/claims/{claim_id(7)}/audit",
        "/patients/p-7",
    ]


async def test_a_patient_is_read_with_its_history_and_claims(front: Any, claims: Claims) -> None:
    text = """{ patient(id: "p-3/ä ?") { patientId
        history(first: 5, type: "admission", from: "2026-11-01T00:00:00+01:00", order: OLDEST_FIRST) {
            edges { node { eventId type late data } } }
        claims { edges { node { claimId } } } } }"""

    read = (await data(front, text))["patient"]

    assert read["history"]["edges"][0]["node"]["data"] == {"ward": "3B"}
    assert {request.target for request in front.claims.requests} == {
        "/patients/p-3%2F%C3%A4%20%3F/history?type=admission&from=2026-11-01T00%3A00%3A00%2B01%3A00&order=asc&limit=5",
        "/claims?patientId=p-3%2F%C3%A4%20%3F&sort=-createdAt&limit=20",
    }


async def test_filters_and_sort_are_those_of_rest(front: Any, claims: Claims) -> None:
    text = """{ claims(first: 3, sort: TOTAL_DESC, filter: {status: [UNDER_REVIEW, PENDING], patientId: "p",
        providerId: "d", assignedProcessorId: "x", createdFrom: "2026-01-01T00:00:00Z",
        createdTo: "2026-02-01T00:00:00Z", minTotal: "0.10", maxTotal: "9999999.99"}) {
        edges { node { claimId } } } }"""

    await data(front, text)

    (request,) = front.claims.requests
    assert parse_qs(urlsplit(request.target).query) == {
        "status": ["under_review,pending"],
        "patientId": ["p"],
        "providerId": ["d"],
        "assignedProcessorId": ["x"],
        "from": ["2026-01-01T00:00:00Z"],
        "to": ["2026-02-01T00:00:00Z"],
        "minTotal": ["0.10"],
        "maxTotal": ["9999999.99"],
        "sort": ["-total"],
        "limit": ["3"],
    }


async def test_what_is_not_there_is_null_and_nothing_is_told(front: Any, claims: Claims) -> None:
    text = """{ claim(id: "%s") { total } no: claim(id: "no/../uuid") { total }
        patient(id: "nobody") { summary { eventTotal } history { edges { cursor } } claims { edges { cursor } } }
        none: patient(id: "") { summary { eventTotal } } }"""

    assert await data(front, text % claim_id(999)) == {
        "claim": None,
        "no": None,
        "patient": {"summary": None, "history": None, "claims": {"edges": []}},
        "none": {"summary": None},
    }


async def test_money_is_text_and_never_passes_through_a_float(front: Any, claims: Claims) -> None:
    claims.claims = [claim(1, total="9007199254740993.10", paid="0.10"), claim(2, total=136.8)]

    assert (await data(front, f'{{ claim(id: "{claim_id(1)}") {{ total paid }} }}'))["claim"] == {
        "total": "9007199254740993.10",
        "paid": "0.10",
    }
    assert await code(front, f'{{ claim(id: "{claim_id(2)}") {{ total }} }}') == (200, "internal")
    for amount in ("0.1", "1", '"1.234"', '"1e3"', '"-1"', '""'):
        text = f"{{ claims(filter: {{minTotal: {amount}}}) {{ edges {{ cursor }} }} }}"
        assert await code(front, text) == (400, "invalid-request"), amount
    text = "query ($m: Money) { claims(filter: {minTotal: $m}) { edges { cursor } } }"
    assert await code(front, text, {"m": 0.1}) == (400, "invalid-request")


async def test_claims_asked_for_by_id_are_read_in_one_request(front: Any, claims: Claims) -> None:
    fields = " ".join(f'c{n}: claim(id: "{claim_id(n)}") {{ claimId }}' for n in range(18))

    read = await data(
        front,
        f'{{ {fields} twice: claim(id: "{claim_id(3)}") {{ total }} no: claim(id: "{claim_id(99)}") {{ total }} }}',
    )

    assert [read[f"c{n}"]["claimId"] for n in range(18)] == [claim_id(n) for n in range(18)]
    assert read["no"] is None
    assert len(front.claims.requests) == 1


@pytest.mark.parametrize("status", [400, 404])
async def test_a_service_that_cannot_read_several_is_asked_for_each(front: Any, claims: Claims, status: int) -> None:
    """As while a gateway that is newer than the service runs."""
    claims.without = status
    selected = "{ patient { summary { eventTotal } } }"
    fields = " ".join(f'c{n}: claim(id: "{claim_id(n)}") {selected}' for n in range(18))

    read = await data(front, f"{{ {fields} }}")

    assert {one["patient"]["summary"]["eventTotal"] for one in read.values()} == {1}
    assert len(front.claims.requests) == 2 * (1 + 18)
    assert claims.busiest <= front.settings.graphql_concurrency


async def test_a_page_is_one_request_however_long_it_is(front: Any, claims: Claims) -> None:
    text = "{ claims(first: 50) { edges { node { claimId total lines { amount } patient { patientId } } } } }"

    assert len((await data(front, text))["claims"]["edges"]) == 50
    assert len(front.claims.requests) == 1


async def test_the_patients_of_a_page_are_read_in_one_request(front: Any, claims: Claims) -> None:
    claims.claims = [claim(number, patientId=f"p,{number % 49}/%") for number in range(49)] + [claim(49)]
    claims.claims[49]["patientId"] = "nobody"
    text = "{ claims(first: 50) { edges { node { patientId patient { summary { eventTotal } } } } } }"

    nodes = [edge["node"] for edge in (await data(front, text))["claims"]["edges"]]

    assert len(front.claims.requests) == 1 + 1
    assert {node["patientId"] for node in nodes if node["patient"]["summary"] is None} == {"nobody"}


async def test_patients_with_the_longest_ids_are_read_in_requests_that_are_not_too_long(
    front: Any, claims: Claims
) -> None:
    claims.claims = [claim(number, patientId="患" * 125 + f"{number:03}") for number in range(50)]
    text = "{ claims(first: 50) { edges { node { patient { summary { eventTotal } } } } } }"

    nodes = [edge["node"] for edge in (await data(front, text))["claims"]["edges"]]

    assert {node["patient"]["summary"]["eventTotal"] for node in nodes} == {1}
    assert len(front.claims.requests) < 50
    assert max(len(request.target) for request in front.claims.requests) < 9000


async def test_never_more_than_a_few_requests_run_at_a_time(front: Any, claims: Claims) -> None:
    text = "{ claims(first: 50) { edges { node { audit(first: 1) { edges { node { seq } } } } } } }"

    await data(front, text)

    assert len(front.claims.requests) == 1 + 50
    assert 2 <= claims.busiest <= front.settings.graphql_concurrency


async def test_two_requests_share_nothing_that_was_read(front: Any, claims: Claims) -> None:
    text = f'{{ claim(id: "{claim_id(1)}") {{ total }} }}'
    await data(front, text)
    claims.claims = []

    assert await data(front, text) == {"claim": None}
    assert len(front.claims.requests) == 2


async def test_each_request_goes_in_the_callers_name_and_trace(front: Any, claims: Claims) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    token = front.token()
    headers = {
        **token,
        "Content-Type": "application/json",
        "X-Request-Id": "mine-1",
        "traceparent": f"00-{trace}-b7ad6b7169203331-01",
        "tracestate": "a=b",
        "X-Organization-Id": "org-b",
        "Cookie": "a=b",
    }
    text = '{ claims { edges { cursor } } patient(id: "p") { summary { eventTotal } } }'

    answer = await front.http.post("/graphql", json={"query": text}, headers=headers)

    assert answer.headers["x-request-id"] == "mine-1"
    spans = set()
    assert len(front.claims.requests) == 2
    for request in front.claims.requests:
        assert request.header("authorization") == token["Authorization"]
        assert request.header("x-request-id") == "mine-1"
        assert request.header("tracestate") == "a=b"
        assert request.header("traceparent").split("-")[1] == trace
        spans.add(request.header("traceparent").split("-")[2])
        assert not {"x-organization-id", "cookie"} & {name.lower() for name, _ in request.headers}
    assert len(spans - {"b7ad6b7169203331"}) == 2
