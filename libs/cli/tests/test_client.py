import asyncio
import socket
import time
from datetime import timedelta
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from carebus_cli.client import GatewayClient, Refused, Unreachable
from carebus_cli.retry import RetryPolicy

from .conftest import FakeGateway, refuse

QUICK = RetryPolicy(give_up_after=timedelta(seconds=1), first_wait=timedelta(milliseconds=5))
EVENT = b'{"eventId":"e-1","patientId":"p","type":"admission"}'


def client_of(gateway: FakeGateway, policy: RetryPolicy = QUICK) -> GatewayClient:
    return GatewayClient(gateway.url, "t0ken", policy=policy)


@pytest.mark.parametrize(("status", "code"), [(503, "unavailable"), (429, "rate-limited")])
async def test_an_event_is_posted_again_until_it_is_accepted(gateway: FakeGateway, status: int, code: str) -> None:
    gateway.answer_with(refuse(status, code), refuse(status, code))
    async with client_of(gateway) as client:
        receipt = await client.send(EVENT)
    assert (receipt.event_id, receipt.offset) == ("e-1", 1)
    assert gateway.seen == [("POST", "/events")] * 3
    assert gateway.tokens == {"Bearer t0ken"}


async def test_retry_after_is_honoured(gateway: FakeGateway) -> None:
    gateway.answer_with(refuse(503, "unavailable", Retry_After="0.4"))
    began = time.monotonic()
    async with client_of(gateway) as client:
        await client.send(EVENT)
    assert time.monotonic() - began >= 0.4


async def test_retries_end_with_the_refusal_and_its_request_id(gateway: FakeGateway) -> None:
    gateway.answer_with(*[refuse(503, "unavailable", Retry_After="0.3")] * 9)
    async with client_of(gateway) as client:
        with pytest.raises(Refused) as caught:
            await client.send(EVENT)
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (503, "unavailable", "r-1")
    assert 2 <= len(gateway.seen) <= 4


async def test_a_wait_longer_than_the_limit_is_refused_at_once(gateway: FakeGateway) -> None:
    gateway.answer_with(refuse(429, "rate-limited", Retry_After="60"))
    async with client_of(gateway) as client:
        with pytest.raises(Refused, match="429 rate-limited"):
            await client.send(EVENT)
    assert len(gateway.seen) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 500])
async def test_what_will_not_change_is_not_tried_again(gateway: FakeGateway, status: int) -> None:
    gateway.answer_with(refuse(status, "some-code"))
    async with client_of(gateway) as client:
        with pytest.raises(Refused) as caught:
            await client.event("e-1")
    assert caught.value.status == status
    assert len(gateway.seen) == 1


async def test_a_gateway_that_never_answered_is_not_waited_for() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        async with GatewayClient(url, "t") as client:
            with pytest.raises(Unreachable, match=f"no answer from {url}"):
                await client.event("e-1")
        assert time.monotonic() - began < 2


async def test_a_lost_connection_is_tried_again_once_the_gateway_has_answered(gateway: FakeGateway) -> None:
    async with client_of(gateway) as client:
        await client.send(EVENT)
        url, client._http.base_url = client._http.base_url, "http://127.0.0.1:1"
        sent = asyncio.create_task(client.send(EVENT))
        await asyncio.sleep(0.05)
        assert not sent.done()
        client._http.base_url = url
        assert (await sent).offset == 2


async def test_an_answer_that_is_no_carebus_answer_is_told(gateway: FakeGateway) -> None:
    gateway.answer_with(lambda _: PlainTextResponse("<html>hello</html>"))
    async with client_of(gateway) as client:
        with pytest.raises(Refused, match="no Carebus answer"):
            await client.patient("p")


async def test_a_batch_has_a_result_per_event_in_its_order(gateway: FakeGateway) -> None:
    gateway.refuse_item = lambda event: {"b": "invalid-request", "c": "unavailable"}.get(event["patientId"])
    batch = [b'{"eventId":"%s","patientId":"%s"}' % (name, name) for name in (b"a", b"b", b"c", b"d")]
    async with client_of(gateway) as client:
        results = await client.send_batch(batch)
    assert [result.receipt.event_id if result.receipt else result.code for result in results] == [
        "a",
        "invalid-request",
        "unavailable",
        "d",
    ]
    assert [result.retriable for result in results] == [False, False, True, False]
    assert results[1].details == [{"path": "data", "rule": "is good"}]


async def test_a_history_is_read_to_its_last_page(gateway: FakeGateway) -> None:
    gateway.log = [{"eventId": str(n), "patientId": "p", "type": "observation"} for n in range(7)]
    async with client_of(gateway) as client:
        items: list[dict[str, Any]] = [item async for item in client.history("p", {"type": "observation"}, page_size=3)]
    assert [item["eventId"] for item in items] == list("0123456")
    assert [path for _, path in gateway.seen] == [
        "/patients/p/history?type=observation&limit=3",
        "/patients/p/history?type=observation&limit=3&cursor=3",
        "/patients/p/history?type=observation&limit=3&cursor=6",
    ]


async def test_an_id_is_one_path_segment_whatever_it_holds(gateway: FakeGateway) -> None:
    paths = []

    def remember(request: Any) -> PlainTextResponse:
        paths.append(request.scope["raw_path"])
        return PlainTextResponse('{"data": {}}')

    gateway.answer_with(remember)
    async with client_of(gateway) as client:
        await client.patient("a/b ?é%2F")
    assert paths == [b"/patients/a%2Fb%20%3F%C3%A9%252F"]
