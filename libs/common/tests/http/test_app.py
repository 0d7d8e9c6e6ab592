"""What every app answers, whatever it is sent: envelopes, request ids, paths, queries, bodies, roles."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Query, Security
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, Field, ValidationError, field_validator

from carebus_common.auth import Caller, TokenVerifier, current_caller
from carebus_common.errors import Conflict, Unavailable
from carebus_common.http import Data, Page, PageInfo, create_app, openapi
from carebus_common.http.envelopes import problems_of as problems_of_model
from carebus_common.http.paths import encode_segment
from carebus_common.http.query import Limit, QueryModel
from carebus_common.jwks import key_source
from carebus_common.settings import HttpSettings, TokenSettings
from carebus_common.testing.tokens import Issuer

ISSUER = Issuer()
CANARY = "Jane Canary"
LIMITS = HttpSettings(port=0, max_body_bytes=1000, max_header_bytes=4000)


class HistoryQuery(QueryModel):
    event_type: str | None = None
    limit: Limit = 50


class Item(BaseModel):
    name: str = Field(max_length=10)
    count: int = Field(ge=0)

    @field_validator("name")
    @classmethod
    def _no_dollar(cls, value: str) -> str:
        if value.startswith("$"):
            raise ValueError("must not start with $")
        return value


class Order(BaseModel):
    items: list[Item]
    note: str


def build(verifier: TokenVerifier | None) -> FastAPI:
    app = create_app(title="Example", version="1", settings=LIMITS, verifier=verifier)
    router = APIRouter(prefix="/things")

    @app.get("/patients/{patient_id:segment}/history")
    async def history(patient_id: str, query: Annotated[HistoryQuery, Query()]) -> Page[str]:
        return Page(data=[patient_id, query.event_type or "", str(query.limit)], page=PageInfo(next="more"))

    @app.get("/plain")
    async def plain(size: int = 1) -> Data[int]:
        return Data(data=size)

    @app.post("/orders")
    async def order(order: Order) -> Data[int]:
        return Data(data=len(order.items))

    @app.get("/conflict")
    async def conflict() -> Data[int]:
        raise Conflict("It changed meanwhile.", details=[{"path": "version", "rule": "the newest"}])

    @app.get("/away")
    async def away() -> Data[int]:
        raise Unavailable("The store is away.", retry_after=timedelta(seconds=1.2))

    @app.get("/bug")
    async def bug() -> Data[int]:
        raise ValueError(CANARY)

    @app.get("/mine")
    async def mine(caller: Annotated[Caller, Security(current_caller)]) -> Data[str]:
        return Data(data=f"{caller.organization_id} {caller.subject}")

    @router.get("/admin")
    async def admin(caller: Annotated[Caller, Security(current_caller, scopes=["admin", "operator"])]) -> Data[str]:
        return Data(data=caller.subject)

    app.include_router(router)
    return app


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    source = key_source(str(ISSUER.write_jwks(tmp_path / "jwks.json")))
    app = build(TokenVerifier(source, TokenSettings(jwks="unused")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details", "requestId"}
    assert body["error"]["code"] == code
    assert body["error"]["requestId"] == response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    return body["error"]  # type: ignore[no-any-return]


async def problems_of(response: httpx.Response) -> dict[str, str]:
    error = error_of(response, 400, "invalid-request")
    return {detail["path"]: detail["rule"] for detail in error["details"]}


# --- envelopes and request ids -------------------------------------------------------------------------------------


async def test_a_list_comes_with_its_page(client: httpx.AsyncClient) -> None:
    response = await client.get("/patients/p1/history")
    assert response.json() == {"data": ["p1", "", "50"], "page": {"next": "more"}}


async def test_an_answer_is_neither_stored_nor_guessed_at(client: httpx.AsyncClient) -> None:
    for path in ("/plain", "/nowhere", "/bug"):
        response = await client.get(path)
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"


async def test_an_error_of_the_tree_keeps_its_code_details_and_headers(client: httpx.AsyncClient) -> None:
    error = error_of(await client.get("/conflict"), 409, "conflict")
    assert error["details"] == [{"path": "version", "rule": "the newest"}]
    response = await client.get("/away")
    error_of(response, 503, "unavailable")
    assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize("path", ["/nowhere", "/docs", "/redoc", "/openapi.json", "/metrics", "/plain/", "//plain"])
async def test_an_unknown_path_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    error_of(await client.get(f"http://test{path}"), 404, "not-found")


async def test_another_method_is_told_the_ones_there_are(client: httpx.AsyncClient) -> None:
    response = await client.delete("/orders")
    error_of(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "OPTIONS, POST"


async def test_options_lists_the_methods(client: httpx.AsyncClient) -> None:
    response = await client.options("/things/admin")
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"
    error_of(await client.options("/nowhere"), 404, "not-found")


async def test_head_is_get_without_the_body(client: httpx.AsyncClient) -> None:
    head, get = await client.head("/plain"), await client.get("/plain")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]
    assert (await client.head("/nowhere")).status_code == 404


async def test_a_sane_request_id_is_kept(client: httpx.AsyncClient) -> None:
    response = await client.get("/plain", headers={"X-Request-Id": "a-B_9.z"})
    assert response.headers["x-request-id"] == "a-B_9.z"


@pytest.mark.parametrize("value", ["", "a b", "x" * 65, "a/b", "é", "a\tb", '"'])
async def test_another_request_id_is_replaced(client: httpx.AsyncClient, value: str) -> None:
    response = await client.get("/nowhere", headers=[(b"X-Request-Id", value.encode())])
    assert len(response.headers["x-request-id"]) == 32


async def test_two_request_ids_are_replaced(client: httpx.AsyncClient) -> None:
    response = await client.get("/plain", headers=[("X-Request-Id", "a"), ("X-Request-Id", "b")])
    assert len(response.headers["x-request-id"]) == 32


async def test_a_bug_is_logged_under_its_request_id_and_tells_nothing(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        response = await client.get("/bug", headers={"X-Request-Id": "find-me"})
    error_of(response, 500, "internal")
    assert CANARY not in response.text and "Traceback" not in response.text
    assert "find-me" in caplog.text and "ValueError" in caplog.text
    assert CANARY not in caplog.text


# --- paths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patient_id",
    [
        "p1",
        "a/b",
        "a%2Fb",
        "100%",
        "é",
        "患者",
        "a\r\nb",
        "a b",
        "..",
        ".",
        "a?b#c",
        "\x00",
        "a+b",
        "😀",
        "a//b",
        ";x=1",
    ],
)
async def test_any_id_may_be_part_of_a_path(client: httpx.AsyncClient, patient_id: str) -> None:
    response = await client.get(f"http://test/patients/{encode_segment(patient_id)}/history")
    assert response.status_code == 200, response.text
    assert response.json()["data"][0] == patient_id


@pytest.mark.parametrize("segment", [b"%", b"%2", b"%zz", b"%e9", b"%ff%fe", b"%ed%a0%80", b"a%u0041", b"%c0%af"])
async def test_a_path_that_does_not_decode_is_refused(client: httpx.AsyncClient, segment: bytes) -> None:
    url = httpx.URL("http://test/x").copy_with(raw_path=b"/patients/" + segment + b"/history")
    assert await problems_of(await client.get(url)) != {}


async def test_an_encoded_slash_does_not_reach_another_route(client: httpx.AsyncClient) -> None:
    error_of(await client.get("http://test/patients%2Fp1%2Fhistory"), 404, "not-found")
    error_of(await client.get("http://test/patients/p1%2Fhistory"), 404, "not-found")


# --- queries -------------------------------------------------------------------------------------------------------

PATH = "http://test/patients/p1/history"


@pytest.mark.parametrize(
    ("query", "path", "rule"),
    [
        ("limit=1e9", "limit", "a whole number in decimal digits"),
        ("limit=-1", "limit", "a whole number in decimal digits"),
        ("limit=+5", "limit", "a whole number in decimal digits"),
        ("limit=5.0", "limit", "a whole number in decimal digits"),
        ("limit=1_0", "limit", "a whole number in decimal digits"),
        ("limit=%D9%A3", "limit", "a whole number in decimal digits"),
        ("limit=", "limit", "a whole number in decimal digits"),
        ("limit=0", "limit", "Input should be greater than or equal to 1"),
        ("limit=201", "limit", "Input should be less than or equal to 200"),
        ("limit=" + "9" * 500, "limit", "a whole number in decimal digits"),
        ("limit=1&limit=2", "limit", "given once"),
        ("limit=1&%6Cimit=2", "limit", "given once"),
        ("limit[$gt]=1", "limit[$gt]", "unknown name"),
        ("eventType[$ne]=x", "eventType[$ne]", "unknown name"),
        ("sort=$where", "sort", "unknown name"),
        ("event_type=x", "event_type", "unknown name"),
        ("Limit=1", "Limit", "unknown name"),
        ("organizationId=org-b", "organizationId", "unknown name"),
        ("eventType=%ff", "eventType", "percent-encoded UTF-8"),
        ("eventType=%zz", "eventType", "percent-encoding with two hexadecimal digits"),
        ("%ff=1", "[0]", "percent-encoded UTF-8"),
        ("Jane+Canary=1", "?", "unknown name"),
        ("=1", "?", "unknown name"),
    ],
)
async def test_a_query_out_of_line_is_refused_by_name(
    client: httpx.AsyncClient, query: str, path: str, rule: str
) -> None:
    response = await client.get(f"{PATH}?{query}")
    assert await problems_of(response) == {path: rule}
    assert CANARY.split()[1] not in response.text


async def test_every_offending_parameter_is_named(client: httpx.AsyncClient) -> None:
    found = await problems_of(await client.get(f"{PATH}?limit=x&a=1&b[$ne]=2"))
    assert set(found) == {"limit", "a", "b[$ne]"}
    found = await problems_of(await client.get(f"{PATH}?limit=1&limit=2&eventType=%ff"))
    assert set(found) == {"limit", "eventType"}


async def test_a_route_without_a_model_refuses_unknown_parameters_too(client: httpx.AsyncClient) -> None:
    assert (await client.get("/plain?size=7")).json() == {"data": 7}
    assert await problems_of(await client.get("/plain?sise=7&b=1")) == {"sise": "unknown name", "b": "unknown name"}
    assert await problems_of(await client.get("/conflict?a=1")) == {"a": "unknown name"}


async def test_a_decodable_query_is_let_in(client: httpx.AsyncClient) -> None:
    response = await client.get(f"{PATH}?eventType=lab%2Dresult+%C3%A9&limit=200")
    assert response.json()["data"] == ["p1", "lab-result é", "200"]


# --- bodies --------------------------------------------------------------------------------------------------------


async def post(client: httpx.AsyncClient, body: Any, content_type: str | None = "application/json") -> httpx.Response:
    headers = {b"content-type": content_type.encode()} if content_type is not None else {}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post("/orders", content=content, headers=headers)


async def test_every_offending_field_is_named_and_no_value_is(client: httpx.AsyncClient) -> None:
    body = {"items": [{"name": CANARY, "count": 1}, {"name": "$x", "count": -1}, CANARY], "extra": CANARY}
    response = await post(client, body)
    assert await problems_of(response) == {
        "$.items[0].name": "String should have at most 10 characters",
        "$.items[1].name": "must not start with $",
        "$.items[1].count": "Input should be greater than or equal to 0",
        "$.items[2]": "Input should be a valid dictionary or object to extract fields from",
        "$.note": "Field required",
    }
    assert CANARY not in response.text


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"items": [], "note": "x", "note": "y"}',
        b'\xef\xbb\xbf{"items": [], "note": "x"}',
        '{"items": [], "note": "x"}'.encode("utf-16"),
        b'{"items": [], "note": "x", "n": 9223372036854775808}',
        b'{"items": [], "note": "x", "$where": 1}',
        b"\xff\xfe{}",
        b'{"items": NaN, "note": "x"}',
        b'{"items": [], "note": "\\ud800"}',
        b'{"items": [{"name": "\\udfff", "count": 1e999}], "note": ""}',
        b"[" * 900,
        b'{"\\ud800": 1}',
        b"\x00",
    ],
    ids=lambda body: repr(body[:20]),
)
async def test_a_body_out_of_line_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    error_of(await post(client, body), 400, "malformed-json")


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"x"', b"{}"])
async def test_a_body_that_is_something_else_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    error_of(await post(client, body), 400, "invalid-request")


@given(
    body=st.binary(max_size=300)
    | st.recursive(st.none() | st.text() | st.floats(), st.lists).map(json.dumps).map(str.encode)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_body_is_answered_with_500(client: httpx.AsyncClient, body: bytes) -> None:
    assert (await post(client, body[:1000])).status_code in (200, 400, 413)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "application",
        "é",
    ],
)
async def test_another_content_type_is_refused(client: httpx.AsyncClient, content_type: str | None) -> None:
    error_of(await post(client, {"items": [], "note": ""}, content_type), 415, "unsupported-media-type")


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=UTF-8", "Application/JSON", 'application/json;charset="utf-8"']
)
async def test_every_spelling_of_json_is_let_in(client: httpx.AsyncClient, content_type: str) -> None:
    assert (await post(client, {"items": [], "note": ""}, content_type)).status_code == 200


async def test_a_body_over_the_limit_is_refused(client: httpx.AsyncClient) -> None:
    error_of(await post(client, b'"' + b"x" * 999 + b'"'), 413, "payload-too-large")


async def test_a_chunked_body_over_the_limit_is_refused(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * 100

    response = await client.post("/orders", content=chunks(), headers={"content-type": "application/json"})
    error_of(response, 413, "payload-too-large")


def test_a_rule_never_quotes_the_value() -> None:
    class Visit(BaseModel):
        kind: Literal["visit"]

    class Stay(BaseModel):
        kind: Literal["stay"]

    class Everything(BaseModel):
        item: Annotated[Visit | Stay, Field(discriminator="kind")]
        id: UUID
        url: AnyUrl
        day: date
        at: datetime
        amount: Decimal
        on: bool
        size: Literal["s", "m"]
        nested: dict[str, int]

    value = CANARY
    with pytest.raises(ValidationError) as refused:
        Everything.model_validate(
            {
                "item": {"kind": value},
                "id": value,
                "url": value,
                "day": value,
                "at": value,
                "amount": value,
                "on": value,
                "size": value,
                "nested": {value: value},
            }
        )
    problems = problems_of_model(refused.value.errors(), within=("body",))
    assert {problem["path"] for problem in problems} == {
        "$.item",
        "$.id",
        "$.url",
        "$.day",
        "$.at",
        "$.amount",
        "$.on",
        "$.size",
        "$.nested.?",
    }
    for problem in problems:
        assert not {"J", "Jane", "Canary"} & set(problem["rule"].replace("`", " ").replace("'", " ").split())


# --- headers and roles ---------------------------------------------------------------------------------------------


async def test_headers_over_the_limit_are_refused(client: httpx.AsyncClient) -> None:
    error_of(await client.get("/plain", headers={"x-a": "x" * 4000}), 431, "headers-too-large")
    error_of(await client.get("/plain", headers=[("x-a", "x" * 10)] * 300), 431, "headers-too-large")
    error_of(await client.get("/plain?" + "x" * 4000), 431, "headers-too-large")


async def test_forged_identity_headers_have_no_effect(client: httpx.AsyncClient) -> None:
    forged = {
        "X-Forwarded-For": "10.0.0.1",
        "X-User-Id": "root",
        "X-Organization-Id": "org-b",
        "X-Forwarded-User": "root",
        "X-Original-Url": "/things/admin",
        "X-HTTP-Method-Override": "DELETE",
    }
    error_of(await client.get("/mine", headers=forged), 401, "unauthenticated")
    response = await client.get("/mine", headers={**forged, "Authorization": ISSUER.bearer("org-a")})
    assert response.json() == {"data": "org-a tester"}


async def test_a_route_asks_for_one_of_its_roles(client: httpx.AsyncClient) -> None:
    response = await client.get("/things/admin")
    error_of(response, 401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"
    error_of(await client.get("/things/admin", headers={"Authorization": ISSUER.bearer()}), 403, "forbidden")
    allowed = await client.get("/things/admin", headers={"Authorization": ISSUER.bearer(roles=["operator"])})
    assert allowed.json() == {"data": "tester"}


async def test_two_authorization_headers_are_refused(client: httpx.AsyncClient) -> None:
    headers = [("Authorization", ISSUER.bearer()), ("Authorization", ISSUER.bearer(roles=["admin"]))]
    error_of(await client.get("/mine", headers=headers), 401, "unauthenticated")


async def test_the_caller_is_asked_for_before_the_query_is_judged(client: httpx.AsyncClient) -> None:
    error_of(await client.get("/things/admin"), 401, "unauthenticated")


# --- the document --------------------------------------------------------------------------------------------------


def test_the_document_names_parameters_roles_and_refusals() -> None:
    document = openapi(build(None))
    history = document["paths"]["/patients/{patient_id}/history"]["get"]
    parameters = {parameter["name"]: parameter for parameter in history["parameters"]}
    assert set(parameters) == {"patient_id", "eventType", "limit"}
    limit = parameters["limit"]["schema"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, 200, 50)
    assert document["paths"]["/things/admin"]["get"]["security"] == [{"bearer": ["admin", "operator"]}]
    assert document["paths"]["/mine"]["get"]["security"] == [{"bearer": []}]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for methods in document["paths"].values():
        for operation in methods.values():
            refusals = {status: one for status, one in operation["responses"].items() if not status.startswith("2")}
            assert refusals.keys() >= {"400", "401", "403", "431", "503"}
            assert ("415" in refusals) == ("requestBody" in operation)
            assert all("/Error" in str(refusal["content"]) for refusal in refusals.values())
