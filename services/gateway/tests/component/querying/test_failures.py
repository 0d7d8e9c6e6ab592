"""What is told when claims refuses, is away or talks nonsense; and what is never told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from .kit import Claims, ask, claim, code, data, refusal


async def test_a_refusal_of_the_service_is_told_with_its_code_where_it_belongs(front: Any, kit: Any) -> None:
    front.claims.behave = kit.answer(403, refusal("forbidden"))

    answer = await ask(front, "{ claims { edges { cursor } } patient(id: 1) { patientId } }")

    assert answer.status_code == 200
    assert answer.json()["data"] == {"claims": None, "patient": {"patientId": "1"}}
    (error,) = answer.json()["errors"]
    assert error["path"] == ["claims"]
    assert error["extensions"] == {
        "code": "forbidden",
        "details": [{"path": "a", "rule": "b"}],
        "requestId": answer.headers["x-request-id"],
    }


async def test_while_claims_is_away_the_breaker_keeps_it_alone(front: Any) -> None:
    await front.claims.stop()
    text = "{ claims { edges { cursor } } }"
    for _ in range(3):
        answer = await ask(front, text)
        assert answer.json()["errors"][0]["extensions"]["code"] == "unavailable"
        assert answer.json()["errors"][0]["extensions"]["retryAfter"] >= 1
    assert (await front.http.get("/health")).json()["error"]["details"][0]["breaker"] == "open"


@pytest.mark.parametrize("nonsense", ["[]", "null", '{"data": 1}', '{"data": [{}]}', '{"data": [1], "page": 7}', "x"])
async def test_nonsense_of_the_service_is_no_answer(front: Any, kit: Any, nonsense: str) -> None:
    front.claims.behave = kit.answer(200, nonsense)

    answer = await ask(front, "{ claims { edges { node { total } } } }")

    assert (answer.status_code, answer.json()["data"]) == (200, {"claims": None})
    assert answer.json()["errors"][0]["extensions"]["code"] in {"bad-gateway", "internal"}


async def test_a_service_that_stalls_ends_with_a_timeout(kit: Any, issuer: Any, jwks: str) -> None:
    async with kit.running(issuer, jwks, claims_timeout="PT20S", graphql_timeout="PT0.3S") as front:
        front.claims.behave = kit.raw(then="stall")
        assert await code(front, "{ claims { edges { cursor } } }") == (504, "gateway-timeout")


async def test_what_nobody_waits_for_any_more_is_given_up(kit: Any, issuer: Any, jwks: str) -> None:
    begun, given_up = asyncio.Event(), asyncio.Event()

    async def slow(_: Any, writer: asyncio.StreamWriter) -> None:
        begun.set()
        reader = writer.transport.get_protocol()._stream_reader  # type: ignore[attr-defined]
        while not reader.at_eof():
            await asyncio.sleep(0.01)
        given_up.set()

    async with kit.running(issuer, jwks, claims_timeout="PT20S") as front:
        front.claims.behave = slow
        asking = asyncio.create_task(ask(front, "{ claims { edges { cursor } } }"))
        async with asyncio.timeout(10):
            await begun.wait()
            asking.cancel()
            await given_up.wait()


async def test_a_long_answer_is_read_whole(front: Any, claims: Claims) -> None:
    claims.claims = [claim(number, statusReason="x" * 30_000) for number in range(50)]

    read = await data(front, "{ claims(first: 50) { edges { node { statusReason } } } }")

    assert {len(edge["node"]["statusReason"]) for edge in read["claims"]["edges"]} == {30_000}


async def test_a_canary_stays_out_of_errors_and_logs(front: Any, kit: Any) -> None:
    name = "Desdemona"
    texts = [
        f"{{ patient(id: {name}) {{ patientId }} }}",
        f'{{ claims(first: "{name}") {{ edges {{ cursor }} }} }}',
        f"{{ claims(sort: {name}) {{ edges {{ cursor }} }} }}",
        f"{{ claims(filter: {{{name}: 1}}) {{ edges {{ cursor }} }} }}",
        f"{{ {name} }}",
        f"{{ claims @{name} {{ edges {{ cursor }} }} }}",
        f"{{ ...{name} }}",
        f"query ({chr(36)}{name}: Int) {{ __typename }}",
        f'{{ "{name}" }}',
        f'{{ claims(after: "{name}") {{ edges {{ cursor }} }} }}',
        f'{{ claim(id: "{name}") {{ total(a: "{name}") }} }}',
        f'{{ a: claims(first: 1) {{ edges {{ cursor }} }} a: patient(id: "{name}") {{ patientId }} }}',
    ]
    with capture_logs() as logs:
        answers = [await ask(front, text) for text in texts]
        for named, declared in (("first", "Int! = 1"), ("sort", "ClaimSort! = TOTAL_ASC"), ("filter", "ClaimFilter")):
            text = f"query ($n: {declared}) {{ claims({named}: $n) {{ edges {{ cursor }} }} }}"
            answers += [await ask(front, text, {"n": value}) for value in (name, {"a": name}, [name], {name: 1})]
        front.claims.behave = kit.answer(200, {"data": [{"claimId": name}], "page": {"next": None}})
        answers.append(await ask(front, "{ claims { edges { node { total } } } }"))

    assert [answer.status_code for answer in answers if "errors" not in answer.json()] == []
    assert [answer.text for answer in answers if name in answer.text] == []
    assert name not in repr(logs)


async def test_what_is_wrong_with_a_query_is_still_told(front: Any) -> None:
    answer = await ask(front, "{\n  claims { edges { node { totl } } } }")

    (error,) = answer.json()["errors"]
    assert error["message"] == "Cannot query field '…' on type 'Claim'."
    assert error["locations"] == [{"line": 2, "column": 27}]
