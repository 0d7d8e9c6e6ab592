"""Batches: a result per item, the good ones accepted, order kept."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from carebus_common.kafka import BrokerAway, Publisher
from carebus_common.messages import Message

from ..conftest import Ingest, RunIngest


def lines(events: list[Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/x-ndjson", "application/ndjson", "application/jsonl"]
)
async def test_a_batch_of_good_events_is_202_with_a_receipt_each_in_order(ingest: Ingest, content_type: str) -> None:
    events = [ingest.event(patientId=f"p{number % 3}") for number in range(30)]
    body = json.dumps(events).encode() if content_type == "application/json" else lines(events)
    answer = await ingest.post_batch(body, content_type=content_type)
    assert answer.status_code == 202
    items = answer.json()["data"]
    assert [item["index"] for item in items] == list(range(30))
    assert [item["eventId"] for item in items] == [event["eventId"] for event in events]
    for patient in range(3):
        offsets = [item["offset"] for item in items[patient::3]]
        assert offsets == sorted(offsets)
        assert len({item["partition"] for item in items[patient::3]}) == 1
    records = await ingest.records(items[:4])
    assert [json.loads(record.value)["eventId"] for record in records] == [event["eventId"] for event in events[:4]]


async def test_good_items_are_accepted_beside_bad_ones_and_each_says_why(ingest: Ingest) -> None:
    good = ingest.event()
    items: list[bytes] = [
        json.dumps(good).encode(),
        b'{"patientId":"p","patientId":"q"}',
        json.dumps(ingest.event(patientId="", ts="x")).encode(),
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b"[" * 60 + b"]" * 60,
        json.dumps(ingest.event(data={"a": "x" * 300 * 1024})).encode(),
        b"7",
        json.dumps(ingest.event(organizationId="b")).encode(),
        json.dumps(good).encode(),
    ]
    answer = await ingest.post_batch(b"[" + b", ".join(items) + b"]")
    assert answer.status_code == 207
    results = answer.json()["data"]
    assert [item["status"] for item in results] == ["accepted", *["rejected"] * 8, "accepted"]
    errors = [(item["error"]["code"], item["error"]["details"]) for item in results[1:-1]]
    assert [code for code, _ in errors] == [
        "malformed-json", "invalid-request", "malformed-json", "malformed-json", "malformed-json",
        "payload-too-large", "malformed-json", "invalid-request",
    ]  # fmt: skip
    assert errors[0][1][0]["path"] == "$.patientId"
    assert {found["path"] for found in errors[1][1]} == {"$.patientId", "$.ts"}
    assert results[0]["eventId"] == results[-1]["eventId"] == good["eventId"]


async def test_a_broken_line_of_ndjson_is_its_own_refusal(ingest: Ingest) -> None:
    body = lines([ingest.event()]) + b'{"patientId":\n\n' + lines([ingest.event()])
    answer = await ingest.post_batch(body, content_type="application/x-ndjson")
    assert answer.status_code == 207
    assert [item["status"] for item in answer.json()["data"]] == ["accepted", "rejected", "accepted"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'[{"a":1}', b"[1,]", b"null", b"[NaN]", b"\xef\xbb\xbf[{}]"])
async def test_a_body_that_is_no_array_is_400_and_nothing_of_it_is_accepted(ingest: Ingest, body: bytes) -> None:
    answer = await ingest.post_batch(body)
    assert answer.status_code == 400
    assert answer.json()["error"]["details"][0]["path"].startswith("$")


async def test_a_syntax_error_behind_good_items_refuses_them_too(ingest: Ingest) -> None:
    marker = ingest.event(patientId="never-stored")
    answer = await ingest.post_batch(json.dumps([marker]).encode()[:-1] + b', {"a":}]')
    assert answer.status_code == 400
    assert answer.json()["error"]["details"][0]["path"] == "$[1].a"


async def test_10_000_events_pass_and_one_more_is_413(ingest: Ingest) -> None:
    one = json.dumps(ingest.event(eventId=None, data={})).encode()
    answer = await ingest.post_batch(b"[" + b",".join([one] * 10_000) + b"]")
    assert answer.status_code == 202
    items = answer.json()["data"]
    assert len({item["eventId"] for item in items}) == 10_000
    assert [item["offset"] for item in items] == sorted(item["offset"] for item in items)
    for separator, content_type in ((b",", "application/json"), (b"\n", "application/x-ndjson")):
        body = separator.join([one] * 10_001)
        body = b"[" + body + b"]" if separator == b"," else body
        assert (await ingest.post_batch(body, content_type=content_type)).status_code == 413


async def test_8_mebibytes_pass_and_one_byte_more_is_413(ingest: Ingest) -> None:
    fill = json.dumps(ingest.event(data={"a": "x" * 200_000})).encode()
    body = b"[" + b",".join([fill] * 40) + b"]"
    body += b" " * (8 * 1024 * 1024 - len(body))
    answer = await ingest.post_batch(body)
    assert answer.status_code == 202, answer.text[:500]
    assert (await ingest.post_batch(body + b" ")).status_code == 413


async def test_a_large_batch_does_not_hold_up_single_events(ingest: Ingest) -> None:
    one = json.dumps(ingest.event(eventId=None)).encode()
    batch = asyncio.create_task(ingest.post_batch(b"[" + b",".join([one] * 10_000) + b"]"))
    slowest = 0.0
    count = 0
    while not batch.done():
        began = time.monotonic()
        assert (await ingest.post(ingest.event())).status_code == 202
        slowest = max(slowest, time.monotonic() - began)
        count += 1
    assert (await batch).status_code == 202
    assert count > 3
    assert slowest < 1


async def test_a_batch_with_an_idempotency_key_is_400_and_says_what_to_do(ingest: Ingest) -> None:
    answer = await ingest.post_batch([ingest.event()], idempotency_key="x")
    assert answer.status_code == 400
    assert "eventIds" in answer.json()["error"]["message"]


async def test_a_batch_over_the_rate_limit_is_accepted_as_far_as_it_goes(run_ingest: RunIngest) -> None:
    async with run_ingest(rate_limit_events_per_minute=6) as ingest:
        answer = await ingest.post_batch([ingest.event() for _ in range(10)])
        assert answer.status_code == 207
        results = answer.json()["data"]
        assert [item["status"] for item in results] == ["accepted"] * 6 + ["rejected"] * 4
        assert {item["error"]["code"] for item in results[6:]} == {"rate-limited"}
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert (await ingest.post_batch([ingest.event()])).status_code == 429


async def test_a_batch_of_which_the_broker_takes_nothing_is_503(
    run_ingest: RunIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object, messages: list[Message]) -> list[BrokerAway]:
        return [BrokerAway("away")] * len(messages)

    async with run_ingest() as ingest:
        event = ingest.event()
        with monkeypatch.context() as patch:
            patch.setattr(Publisher, "publish_each", away)
            answer = await ingest.post_batch([{"x": 1}, event])
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "2"
        (found,) = answer.json()["error"]["details"]
        assert (found["path"], found["eventId"]) == ("$[1].eventId", event["eventId"])


async def test_once_the_broker_went_nothing_later_of_the_batch_is_published(
    run_ingest: RunIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else a later event of a patient would be stored before the one that has to be repeated."""
    calls = 0
    publish_each = Publisher.publish_each

    async def goes(publisher: Publisher, messages: list[Message]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            return await publish_each(publisher, messages)
        return [BrokerAway("away")] * len(messages)

    async with run_ingest() as ingest:
        with monkeypatch.context() as patch:
            patch.setattr(Publisher, "publish_each", goes)
            answer = await ingest.post_batch([ingest.event(eventId=None) for _ in range(1600)])
        assert answer.status_code == 207
        assert answer.headers["retry-after"] == "2"
        results = answer.json()["data"]
        assert [item["status"] for item in results] == ["accepted"] * 500 + ["rejected"] * 1100
        assert {item["error"]["code"] for item in results[500:]} == {"unavailable"}
        assert all(item["error"]["details"][0]["eventId"] for item in results[500:])
        assert calls == 2
