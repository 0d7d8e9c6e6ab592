"""What a hostile or careless sender may post, over a real connection: every row is a refusal with its reason."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import time
from datetime import timedelta
from typing import Any

import httpx
import jwt
import pytest

from carebus_common.testing.connections import connected
from carebus_common.testing.tokens import Issuer

from ..conftest import Ingest, RunIngest

CANARY = "Canary Jane Doe"


def detail(answer: httpx.Response) -> tuple[str, str]:
    (found,) = answer.json()["error"]["details"]
    return found["path"], found["rule"]


def raw_event(ingest: Ingest, inner: bytes) -> bytes:
    """An event whose data is written byte for byte."""
    return json.dumps(ingest.event(data=7)).encode().replace(b"7}", inner + b"}")


@pytest.mark.parametrize(
    ("inner", "path", "rule"),
    [
        (b'{"a":1,"a":2}', "$.data.a", "duplicate-key"),
        (b'{"a":NaN}', "$.data.a", "not-a-number"),
        (b'{"a":1e999}', "$.data.a", "number-overflow"),
        (b'{"a":"\\ud800"}', "$.data.a", "lone-surrogate"),
        (b'{"a":9223372036854775808}', "$.data.a", "integer-beyond-64-bits"),
        (b'{"a\\u0000":1}', '$.data["a\\u0000"]', "forbidden-key"),
        (b'{"$where":1}', '$.data["$where"]', "forbidden-key"),
        (b'{"a.b":1}', '$.data["a.b"]', "forbidden-key"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "$.data" + ".a" * 32, "too-deep"),
        (b'{"a":"\xff"}', "$.data.a", "not-utf-8"),
        (b'{"a":1', "$", "syntax"),
    ],
)
async def test_json_with_two_readings_is_400_with_the_path(ingest: Ingest, inner: bytes, path: str, rule: str) -> None:
    answer = await ingest.post(raw_event(ingest, inner))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "malformed-json"
    assert detail(answer) == (path, rule)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
async def test_another_encoding_than_utf_8_is_400(ingest: Ingest, encoding: str) -> None:
    answer = await ingest.post(json.dumps(ingest.event()).encode(encoding))
    assert answer.status_code == 400
    assert detail(answer)[1] in ("byte-order-mark", "not-utf-8")


async def test_a_mongodb_operator_in_place_of_an_id_is_400(ingest: Ingest) -> None:
    answer = await ingest.post(ingest.event(eventId={"$ne": None}))
    assert (answer.status_code, *detail(answer)) == (400, '$.eventId["$ne"]', "forbidden-key")


@pytest.mark.parametrize("query", ["patientId[$ne]=x", "sort=$where", "limit=1e9", "limit=-1", "x", "a=1&a=2", "%zz=1"])
@pytest.mark.parametrize("path", ["/events", "/events/batch"])
async def test_a_query_parameter_is_400(ingest: Ingest, path: str, query: str) -> None:
    answer = await ingest.post(ingest.event(), f"{path}?{query}")
    assert answer.status_code == 400
    assert "$where" not in answer.text


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/xml",
                                          "application/json; charset=utf-16", "application/jsonp", ""])  # fmt: skip
@pytest.mark.parametrize("path", ["/events", "/events/batch"])
async def test_another_content_type_or_none_is_415(ingest: Ingest, path: str, content_type: str | None) -> None:
    answer = await ingest.post(ingest.event(), path, content_type=content_type)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported-media-type")


@pytest.mark.parametrize("path", ["/events", "/events/batch"])
async def test_a_compressed_body_is_415(ingest: Ingest, path: str) -> None:
    body = gzip.compress(json.dumps([ingest.event()]).encode())
    answer = await ingest.post(body, path, content_encoding="gzip")
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported-media-type")


async def test_ndjson_is_415_for_a_single_event(ingest: Ingest) -> None:
    assert (await ingest.post(ingest.event(), content_type="application/x-ndjson")).status_code == 415


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON ; Charset=UTF-8", 'application/json;charset="utf-8"']
)
async def test_json_in_utf_8_is_taken_however_it_is_written(ingest: Ingest, content_type: str) -> None:
    assert (await ingest.post(ingest.event(), content_type=content_type)).status_code == 202


async def test_a_body_over_the_limit_is_413_announced_or_chunked(ingest: Ingest) -> None:
    body = json.dumps(ingest.event(data={"a": "x" * 300 * 1024})).encode()
    assert (await ingest.post(body)).status_code == 413

    async def chunks() -> Any:
        for begin in range(0, len(body), 10_000):
            yield body[begin : begin + 10_000]

    sent = {"authorization": ingest.bearer(), "content-type": "application/json"}
    answer = await ingest.http.post("/events", content=chunks(), headers=sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload-too-large")


async def test_a_body_is_refused_by_its_announced_length_before_it_is_sent(ingest: Ingest) -> None:
    async with connected(ingest.port) as connection:
        await connection.send(head(ingest, "content-length: 9999999999"))
        assert (await connection.answer()).status == 413


async def test_data_over_256_kibibytes_is_413(ingest: Ingest) -> None:
    answer = await ingest.post(ingest.event(data={"a": "x" * 256 * 1024}))
    assert answer.status_code == 413
    assert detail(answer)[0] == "$.data"
    largest = {"a": "x" * (256 * 1024 - 8)}
    assert (await ingest.post(ingest.event(data=largest))).status_code == 202


async def test_headers_of_20_kilobytes_are_431(ingest: Ingest) -> None:
    answer = await ingest.post(ingest.event(), X_Padding="x" * 20_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers-too-large")


def head(ingest: Ingest, *lines: str) -> bytes:
    start = ["POST /events HTTP/1.1", "host: x", f"authorization: {ingest.bearer()}", "content-type: application/json"]
    return "\r\n".join([*start, *lines, "", ""]).encode()


async def test_a_body_that_stalls_is_408_and_closed(run_ingest: RunIngest) -> None:
    async with run_ingest(body_timeout=timedelta(seconds=0.5)) as ingest, connected(ingest.port) as connection:
        began = time.monotonic()
        await connection.send(head(ingest, "content-length: 1000") + b'{"patientId":')
        answer = await connection.answer()
        assert (answer.status, answer.error()["code"]) == (408, "request-timeout")
        await connection.closed()
        assert 0.4 < time.monotonic() - began < 5


async def test_the_default_patience_with_a_stalled_body_is_below_30_seconds(ingest: Ingest) -> None:
    from carebus_ingest.settings import Settings

    assert Settings(jwks="x", port=0).body_timeout < timedelta(seconds=30)


def forged(issuer: Issuer) -> dict[str, str]:
    """Tokens that must not pass, each for one reason."""
    good = issuer.claims()
    claims, none, odd = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (good, {"alg": "none", "typ": "at+jwt"}, {"alg": "noNE", "typ": "at+jwt"})
    )
    stranger = Issuer()
    stranger.key_id = issuer.key_id
    return {
        "none": f"{none}.{claims}.",
        "noNE": f"{odd}.{claims}.",
        "hmac": jwt.encode(good, "x" * 64, algorithm="HS256", headers={"typ": "at+jwt", "kid": issuer.key_id}),
        "another key": stranger.sign(good),
        "audience": issuer.sign({**good, "aud": "someone-else"}),
        "issuer": issuer.sign({**good, "iss": "someone-else"}),
        "type": issuer.sign(good, {"typ": "id+jwt"}),
        "no expiry": issuer.sign({name: value for name, value in good.items() if name != "exp"}),
        "expired": issuer.sign({**good, "exp": int(time.time()) - 3600}),
        "crit": issuer.sign(good, {"crit": ["x"], "x": 1}),
        "jku": issuer.sign(good, {"jku": "http://127.0.0.1:1/keys"}),
        "jwk": issuer.sign(good, {"jwk": issuer.jwk()}),
        "four segments": issuer.sign(good) + ".x",
        "json form": json.dumps({"payload": claims}),
        "bad organization": issuer.sign({**good, "organizationId": "a/../b"}),
    }


async def test_a_token_that_is_not_one_is_401(ingest: Ingest) -> None:
    for reason, token in forged(ingest.issuer).items():
        answer = await ingest.post(ingest.event(), authorization=f"Bearer {token}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated"), reason
        assert answer.headers["www-authenticate"] == "Bearer"
    for header in ("", "Basic eDp4", ingest.bearer().removeprefix("Bearer ")):
        assert (await ingest.post(ingest.event(), authorization=header)).status_code == 401
    none = await ingest.http.post("/events", json=ingest.event())
    assert none.status_code == 401
    twice = [("authorization", ingest.bearer()), ("authorization", ingest.bearer())]
    assert (await ingest.http.post("/events", json=ingest.event(), headers=twice)).status_code == 401


@pytest.mark.parametrize("role", ["admin", "processor", "provider", "patient", "operator", "operator-phi"])
@pytest.mark.parametrize("path", ["/events", "/events/batch"])
async def test_without_the_role_event_sender_nobody_may_send(ingest: Ingest, path: str, role: str) -> None:
    answer = await ingest.post([ingest.event()], path, authorization=ingest.bearer(roles=(role,)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


async def test_the_token_is_asked_for_before_the_body(ingest: Ingest) -> None:
    async with connected(ingest.port) as connection:
        await connection.send(b"POST /events HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
        assert (await connection.answer()).status == 401


async def test_the_organization_comes_from_the_token_and_nothing_else(ingest: Ingest) -> None:
    for field in ("organizationId", "receivedAt"):
        answer = await ingest.post(ingest.event(**{field: "org-b"}))
        assert (answer.status_code, *detail(answer)) == (400, f"$.{field}", "unknown name")
    answer = await ingest.post(
        ingest.event(),
        organization_id="org-mine",
        X_Organization_Id="org-b",
        X_User_Id="admin",
        X_Forwarded_For="10.0.0.1",
        Forwarded="for=10.0.0.1",
    )
    record = await ingest.record(answer.json()["data"])
    assert json.loads(record.value)["organizationId"] == "org-mine"
    assert dict(record.headers)["organizationId"] == b"org-mine"


async def test_every_offending_field_is_named_at_once(ingest: Ingest) -> None:
    answer = await ingest.post(
        {"eventId": "x", "patientId": "", "type": "lab-result", "data": {"value": {}, "unit": 7}, CANARY: 1}
    )
    assert answer.status_code == 400
    paths = {found["path"] for found in answer.json()["error"]["details"]}
    assert paths == {"$.eventId", "$.patientId", "$.ts", "$.data.value", "$.data.unit", "$.?"}


async def test_no_refusal_repeats_what_was_sent(ingest: Ingest, caplog: pytest.LogCaptureFixture) -> None:
    """A canary patient name, wherever a sender may put it."""
    bodies: list[bytes] = [
        json.dumps(ingest.event(**fields)).encode()
        for fields in (
            {"patientId": CANARY * 20},
            {"eventId": CANARY},
            {"type": CANARY},
            {"ts": CANARY},
            {"data": CANARY},
            {"type": "lab-result", "data": {"value": {CANARY: CANARY}, "unit": [CANARY]}},
            {CANARY: CANARY},
        )
    ]
    bodies += [raw_event(ingest, inner) for inner in (f'{{"a":"{CANARY}","a":1}}'.encode(), f'"{CANARY}" x'.encode())]
    for body in bodies:
        for path, wrapped in (("/events", body), ("/events/batch", b"[" + body + b"]")):
            answer = await ingest.post(wrapped, path)
            assert answer.status_code in (207, 400), answer.text
            assert "Canary" not in answer.text
            assert "Canary" not in str(answer.headers)
    accepted = await ingest.post(ingest.event(patientId=CANARY, data={"name": CANARY}))
    assert accepted.status_code == 202
    assert "Canary" not in accepted.text + str(accepted.headers)
    record = await ingest.record(accepted.json()["data"])
    assert record.key == CANARY.encode()
    assert b"Canary" not in b"".join(value for _, value in record.headers)
    metrics = await ingest.http.get(f"http://127.0.0.1:{ingest.management_port}/metrics")
    assert "Canary" not in metrics.text
    assert "Canary" not in caplog.text


async def test_line_breaks_in_an_id_are_data_and_never_a_header_or_a_log_line(
    ingest: Ingest, caplog: pytest.LogCaptureFixture
) -> None:
    forged_line = "x\r\n\r\nHTTP/1.1 200 OK\r\nset-cookie: a=b"
    answer = await ingest.post(ingest.event(patientId=forged_line))
    assert answer.status_code == 202
    assert "set-cookie" not in answer.headers
    assert (await ingest.record(answer.json()["data"])).key == forged_line.encode()
    assert "set-cookie" not in caplog.text
    assert (await ingest.post(ingest.event(eventId=forged_line))).status_code == 400


async def test_a_request_id_is_given_or_taken_over(ingest: Ingest) -> None:
    assert (await ingest.post(ingest.event(), X_Request_Id="my-id.1")).headers["x-request-id"] == "my-id.1"
    assert (await ingest.post(b"{", X_Request_Id="my-id.1")).json()["error"]["requestId"] == "my-id.1"
    assert len((await ingest.post(ingest.event(), X_Request_Id="bad id")).headers["x-request-id"]) == 32


async def test_other_methods_and_paths_are_not_there(ingest: Ingest) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        assert (await ingest.http.request(method, "/events")).status_code == 405
    for path in ("/events/", "/docs", "/redoc", "/openapi.json", "/metrics", "/", "/events/batch/x"):
        assert (await ingest.http.post(path, headers={"authorization": ingest.bearer()})).status_code in (404, 405)
        assert (await ingest.http.get(path)).status_code in (404, 405)


async def test_request_1001_of_a_minute_is_429_with_the_rate_limit_headers(run_ingest: RunIngest) -> None:
    async with run_ingest(rate_limit_events_per_minute=1000) as ingest:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(ingest.post(ingest.event())) for _ in range(50)]
        statuses = [call.result().status_code for call in calls]
        for _ in range(19):
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(ingest.post(ingest.event())) for _ in range(50)]
            statuses += [call.result().status_code for call in calls]
        assert statuses == [202] * 1000
        answer = await ingest.post(ingest.event())
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate-limited")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.headers["ratelimit-limit"] == "1000"
        assert answer.headers["ratelimit-remaining"] == "0"
        assert answer.headers["ratelimit-reset"] == answer.headers["retry-after"]
        assert answer.headers["ratelimit-policy"].startswith("1000;w=60")
        assert (await ingest.post(ingest.event(), organization_id="another")).status_code == 202


async def test_the_rate_limit_counts_bytes_too(run_ingest: RunIngest) -> None:
    async with run_ingest(rate_limit_bytes_per_minute=20_000, max_batch_bytes=20_000) as ingest:
        large = ingest.event(data={"a": "x" * 9_000})
        assert [(await ingest.post(large)).status_code for _ in range(3)] == [202, 202, 429]


async def test_a_refused_event_counts_as_well(run_ingest: RunIngest) -> None:
    async with run_ingest(rate_limit_events_per_minute=2) as ingest:
        assert [(await ingest.post(b"{")).status_code for _ in range(3)] == [400, 400, 429]


async def test_health_says_whether_events_can_be_taken(ingest: Ingest) -> None:
    answer = await ingest.http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"data": {"status": "ok", "checks": {"broker": "ok"}}})
    live = await ingest.http.get(f"http://127.0.0.1:{ingest.management_port}/health/live")
    assert live.status_code == 200
