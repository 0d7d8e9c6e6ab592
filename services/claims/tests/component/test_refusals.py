"""The rows of the inputs table that touch reads."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import prometheus_client
import pytest
from structlog.testing import capture_logs

HISTORY = "/patients/patient-1/history"


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("patientId[$ne]=x", "patientId[$ne]"),
        ("type[$ne]=x", "type[$ne]"),
        ("type=$where", "type"),
        ("type=a&type=b", "type"),
        ("type=", "type"),
        ("sort=$where", "sort"),
        ("order=$where", "order"),
        ("order=newest", "order"),
        ("limit=1e9", "limit"),
        ("limit=-1", "limit"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=%2B5", "limit"),
        ("limit=9999999999999999999999", "limit"),
        ("from=2026-03-01T12:00:00", "from"),
        ("from=2026-03-01", "from"),
        ("from=1772366400", "from"),
        ("from=2026-03-01T12:00:00+01:00", "from"),
        ("from=0001-01-01T00:00:00%2B14:00", "from"),
        ("to=9999-12-31T23:59:59-12:00", "to"),
        ("to[$gt]=2026-03-01T12:00:00Z", "to[$gt]"),
        ("from=2026-03-01T12:00:01Z&to=2026-03-01T12:00:00Z", "to"),
        ("from=2026-03-01T12:00:00Z&to=2026-03-01T12:00:00%2B01:00", "to"),
        ("organizationId=org-b", "organizationId"),
        ("since=2026-03-01T12:00:00Z", "since"),
        ("cursor=nonsense", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=", "cursor"),
        ("cursor=" + "A" * 5000, "cursor"),
        ("type=%FF", "type"),
        ("type=%zz", "type"),
    ],
)
async def test_a_query_that_breaks_a_rule_is_refused_with_the_parameter_named(
    world: Any, events: Any, query: str, path: str
) -> None:
    await world.apply([events()])

    answer = await world.get(f"{HISTORY}?{query}")

    assert answer.status_code == 400, answer.text
    assert path in [detail["path"] for detail in answer.json()["error"]["details"]]


@pytest.mark.parametrize("event_id", ["1", "not-a-uuid", "%7B%22%24ne%22%3Anull%7D", "0" * 32, "urn:uuid:" + "0" * 32])
async def test_an_event_id_that_is_no_uuid_is_refused(world: Any, event_id: str) -> None:
    answer = await world.get(f"/events/{event_id}")

    assert answer.status_code == 400
    assert answer.json()["error"]["details"][0]["path"] == "eventId"


@pytest.mark.parametrize(
    "query", ["partition=-1", "partition=x", "offset=-1", "offset=1e3", "offset=9999999999999999999999", "replica=1"]
)
async def test_a_receipt_that_breaks_a_rule_is_refused(world: Any, events: Any, query: str) -> None:
    event = events()
    await world.apply([event])

    assert (await world.get(f"/events/{event.event_id}?{query}")).status_code == 400


@pytest.mark.parametrize("url", ["/patients/" + "x" * 129, "/patients/%FF", "/patients/%zz", "/patients/%ED%A0%80"])
async def test_a_patient_id_that_none_can_have_is_refused(world: Any, url: str) -> None:
    assert (await world.get(url)).status_code == 400


@pytest.mark.parametrize(
    "url", ["/", "/patients/", "/patients/p/", "/patients/a/b", "/events/", "/docs", "/openapi.json"]
)
async def test_what_is_not_served_is_not_found(world: Any, url: str) -> None:
    answer = await world.get(url)

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not-found")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_histories_are_read_only(world: Any, events: Any, method: str) -> None:
    event = events()
    await world.apply([event])
    headers = {"Authorization": world.issuer.bearer("org-a", ["admin"])}

    for url in ("/patients/patient-1", HISTORY, f"/events/{event.event_id}"):
        assert (await world.http.request(method, url, headers=headers, json={})).status_code == 405
    assert await world.database["patient_histories"].count_documents({}) == 1


async def test_a_cursor_serves_its_own_list_and_no_other(world: Any, events: Any) -> None:
    await world.apply(events(organizationId=o, patientId=p) for o in ("org-a", "org-b") for p in "pq" for _ in range(3))
    cursor = (await world.get("/patients/p/history?limit=1")).json()["page"]["next"]
    at_last = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")

    async def status(url: str, **who: Any) -> int:
        code: int = (await world.get(url, **who)).status_code
        return code

    assert await status(f"/patients/p/history?cursor={cursor}") == 200
    assert await status(f"/patients/p/history?limit=2&cursor={cursor}") == 200
    assert await status(f"/patients/p/history?cursor={cursor}", organization="org-b") == 404
    assert await status(f"/patients/q/history?cursor={cursor}") == 400
    assert await status(f"/patients/p/history?type=note&cursor={cursor}") == 400
    assert await status(f"/patients/p/history?order=asc&cursor={cursor}") == 400
    assert await status(f"/patients/p/history?from=2026-01-01T00:00:00Z&cursor={cursor}") == 400
    assert await status(f"/patients/p/history?cursor={at_last}x") == 400
    assert await status(f"/patients/p/history?cursor={cursor[5:]}") == 400


async def test_headers_name_neither_a_tenant_nor_a_user(world: Any, events: Any) -> None:
    await world.apply([events(organizationId="org-b")])
    headers = {
        "Authorization": world.issuer.bearer("org-a", ["admin"]),
        "X-Organization-Id": "org-b",
        "X-User-Id": "root",
        "X-Forwarded-For": "127.0.0.1",
    }

    assert (await world.http.get("/patients/patient-1", headers=headers)).status_code == 404


async def test_a_canary_is_in_no_refusal_no_log_and_no_metric(world: Any, events: Any) -> None:
    """The patient's name, as data and as an id, through every route and every way to fail."""
    name = "Desdemona-Quillfeather"
    event = events(patientId=name, data={"name": name})
    await world.apply([event])
    urls = (
        f"/patients/{name}/history?type={name}",
        f"/patients/{name}/history?cursor={name}",
        f"/patients/{name}/history?from={name}",
        f"/patients/{name}{'x' * 128}",
        f"/patients/{name}/{name}",
        f"/events/{name}",
    )
    with capture_logs() as logs:
        refusals = [await world.get(url) for url in urls]
        refusals.append(await world.get(f"/patients/{name}", organization="org-b"))
        refusals.append(await world.get(f"/patients/{name}", roles=["operator"]))
        assert name in (await world.get(f"/patients/{name}/history")).text

    assert all(answer.status_code in (400, 403, 404) for answer in refusals)
    assert not [answer.text for answer in refusals if "Desdemona" in answer.text]
    assert "Desdemona" not in repr(logs)
    assert "Desdemona" not in prometheus_client.generate_latest().decode()


async def test_an_event_of_another_tenant_is_answered_like_one_that_does_not_exist(world: Any, events: Any) -> None:
    event = events(organizationId="org-b", patientId="theirs")
    await world.apply([event])
    headers = {"Authorization": world.issuer.bearer("org-a", ["admin"]), "X-Request-Id": "same"}

    for theirs, nobodys in (
        (f"/events/{event.event_id}", f"/events/{uuid4()}"),
        ("/patients/theirs", "/patients/nobodys"),
        ("/patients/theirs/history", "/patients/nobodys/history"),
    ):
        answers = [await world.http.get(url, headers=headers) for url in (theirs, nobodys)]
        assert answers[0].status_code == 404
        assert answers[0].content == answers[1].content


@pytest.mark.parametrize(
    ("claims", "headers"),
    [
        ({"exp": 1}, {}),
        ({"iss": "other"}, {}),
        ({"aud": "other"}, {}),
        ({"organizationId": {"$ne": None}}, {}),
        ({}, {"typ": "id_token"}),
        ({}, {"crit": ["x"], "x": 1}),
    ],
)
async def test_claims_trusts_nobody_in_front_of_it_with_the_token(
    world: Any, events: Any, claims: dict[str, Any], headers: dict[str, Any]
) -> None:
    await world.apply([events()])
    token = world.issuer.sign({**world.issuer.claims("org-a", ["admin"]), **claims}, headers)

    answer = await world.http.get(HISTORY, headers={"Authorization": f"Bearer {token}"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")


async def test_twenty_kilobytes_of_headers_are_too_many(world: Any) -> None:
    headers = {"Authorization": world.issuer.bearer("org-a", ["admin"]), "X-Much": "x" * 20_000}

    assert (await world.http.get(HISTORY, headers=headers)).status_code == 431
