"""One event: from the request to the record and the receipt."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from carebus_common.contracts.event import MedicalEvent, event_id_from_key
from carebus_common.errors import Unavailable
from carebus_common.kafka import BrokerAway, Publisher

from ..conftest import PUBLIC_URL, Ingest, RunIngest


async def test_the_receipt_says_where_the_event_is(ingest: Ingest) -> None:
    event = ingest.event(patientId="päti/ent")
    answer = await ingest.post(event)
    assert answer.status_code == 202
    receipt = answer.json()["data"]
    assert receipt == {
        "eventId": event["eventId"],
        "status": "accepted",
        "partition": receipt["partition"],
        "offset": receipt["offset"],
        "statusUrl": f"{PUBLIC_URL}/events/{event['eventId']}"
        f"?partition={receipt['partition']}&offset={receipt['offset']}",
    }
    assert answer.headers["location"] == receipt["statusUrl"]
    assert answer.headers["cache-control"] == "no-store"
    record = await ingest.record(receipt)
    assert record.key == "päti/ent".encode()
    stored = MedicalEvent.model_validate_json(record.value)
    assert str(stored.event_id) == event["eventId"]
    assert stored.organization_id == ingest.organization_id
    assert stored.data == event["data"]
    assert abs(stored.received_at - datetime.now(UTC)) < timedelta(seconds=10)
    headers = dict(record.headers)
    assert headers["ce_id"] == event["eventId"].encode()
    assert headers["ce_source"] == f"/organizations/{ingest.organization_id}".encode()


async def test_the_trace_of_the_caller_goes_on_in_the_record(ingest: Ingest) -> None:
    answer = await ingest.post(ingest.event(), traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
    record = await ingest.record(answer.json()["data"])
    _, trace, parent, flags = dict(record.headers)["traceparent"].decode().split("-")
    assert (trace, flags) == ("ab" * 16, "01")
    assert parent != "cd" * 8


async def test_events_of_one_patient_have_one_partition_and_rising_offsets(ingest: Ingest) -> None:
    receipts = [(await ingest.post(ingest.event(patientId="ordered"))).json()["data"] for _ in range(10)]
    assert len({receipt["partition"] for receipt in receipts}) == 1
    offsets = [receipt["offset"] for receipt in receipts]
    assert offsets == sorted(offsets)


async def test_200_parallel_copies_of_one_event_are_all_answered_with_its_id(ingest: Ingest) -> None:
    event = ingest.event(patientId="copied")
    answers = await asyncio.gather(*(ingest.post(event) for _ in range(200)))
    assert {answer.status_code for answer in answers} == {202}
    receipts = [answer.json()["data"] for answer in answers]
    assert {receipt["eventId"] for receipt in receipts} == {event["eventId"]}
    assert len({receipt["partition"] for receipt in receipts}) == 1
    assert len({receipt["offset"] for receipt in receipts}) == 200
    ids = {json.loads(record.value)["eventId"] for record in await ingest.records(receipts[:5])}
    assert ids == {event["eventId"]}


async def test_the_same_id_with_another_payload_is_accepted_and_judged_downstream(ingest: Ingest) -> None:
    event = ingest.event()
    assert (await ingest.post(event)).status_code == 202
    assert (await ingest.post({**event, "data": {"heartRate": 81}})).status_code == 202


async def test_an_event_without_an_id_gets_a_new_one(ingest: Ingest) -> None:
    first, second = [(await ingest.post(ingest.event(eventId=None))).json()["data"] for _ in range(2)]
    assert first["eventId"] != second["eventId"]
    assert UUID(first["eventId"]).version == 7


async def test_the_same_key_and_body_get_the_first_receipt_again(ingest: Ingest) -> None:
    event = ingest.event(eventId=None)
    first = await ingest.post(event, idempotency_key="order-1")
    again = await ingest.post(event, idempotency_key='"order-1"')
    assert first.status_code == again.status_code == 202
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    expected = event_id_from_key(ingest.organization_id, "order-1")
    assert first.json()["data"]["eventId"] == str(expected)


async def test_the_same_key_with_another_body_is_422(ingest: Ingest) -> None:
    assert (await ingest.post(ingest.event(), idempotency_key="order-2")).status_code == 202
    answer = await ingest.post(ingest.event(), idempotency_key="order-2")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not-allowed")
    assert answer.json()["error"]["details"] == [{"path": "idempotency-key", "rule": "one key for one body"}]


async def test_another_organizations_key_is_another_key(ingest: Ingest) -> None:
    event = ingest.event(eventId=None)
    mine = await ingest.post(event, idempotency_key="order-3")
    theirs = await ingest.post(event, idempotency_key="order-3", organization_id="another-org")
    assert theirs.status_code == 202
    assert "idempotency-replayed" not in theirs.headers
    assert mine.json()["data"]["eventId"] != theirs.json()["data"]["eventId"]


async def test_a_refused_event_does_not_use_its_key_up(ingest: Ingest) -> None:
    assert (await ingest.post({"x": 1}, idempotency_key="order-4")).status_code == 400
    assert (await ingest.post(ingest.event(), idempotency_key="order-4")).status_code == 202


async def test_repetitions_at_once_have_one_id(ingest: Ingest) -> None:
    event = ingest.event(eventId=None)
    answers = await asyncio.gather(*(ingest.post(event, idempotency_key="order-5") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["data"]["eventId"] for answer in answers}) == 1


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "a\tb"])
async def test_a_key_that_is_none_is_400(ingest: Ingest, key: str) -> None:
    answer = await ingest.post(ingest.event(), idempotency_key=key)
    assert answer.status_code == 400
    assert answer.json()["error"]["details"][0]["path"] == "idempotency-key"


async def test_a_broker_that_does_not_acknowledge_is_503_with_the_id_to_repeat_with(
    run_ingest: RunIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object, __: object) -> None:
        raise BrokerAway("not acknowledged")

    async with run_ingest() as ingest:
        with monkeypatch.context() as patch:
            patch.setattr(Publisher, "publish", away)
            answer = await ingest.post(ingest.event(eventId=None), idempotency_key="order-6")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, Unavailable.code)
            assert answer.headers["retry-after"] == "2"
            (found,) = answer.json()["error"]["details"]
            assert found["path"] == "$.eventId"
            assert found["eventId"] == str(event_id_from_key(ingest.organization_id, "order-6"))
        again = await ingest.post(ingest.event(eventId=None), idempotency_key="order-6")
        assert again.status_code == 202
        assert again.json()["data"]["eventId"] == found["eventId"]


async def test_a_bug_of_ours_is_a_500_that_says_nothing_of_itself(
    run_ingest: RunIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: object, __: object) -> None:
        raise ZeroDivisionError("Canary Jane")

    async with run_ingest() as ingest:
        with monkeypatch.context() as patch:
            patch.setattr(Publisher, "publish", broken)
            answer = await ingest.post(ingest.event())
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert "Canary" not in answer.text


async def test_without_redis_events_are_accepted_and_keys_still_make_the_ids(run_ingest: RunIngest) -> None:
    async with run_ingest(redis_url="redis://127.0.0.1:1/0", rate_limit_events_per_minute=1) as ingest:
        event = ingest.event(eventId=None)
        answers = [await ingest.post(event, idempotency_key="order-8") for _ in range(5)]
        assert {answer.status_code for answer in answers} == {202}
        assert {answer.json()["data"]["eventId"] for answer in answers} == {
            str(event_id_from_key(ingest.organization_id, "order-8"))
        }
        assert (await ingest.http.get("/health")).status_code == 200
