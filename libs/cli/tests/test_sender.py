import random
import time
from collections import defaultdict
from datetime import timedelta
from typing import Any

import pytest

from carebus_cli import sender
from carebus_cli.client import GatewayClient, ItemResult, Receipt, Refused
from carebus_cli.retry import RetryPolicy
from carebus_cli.sender import GaveUp, Outgoing, Sending, send_in_order

from .conftest import FakeGateway, refuse

QUICK = RetryPolicy(give_up_after=timedelta(seconds=1), first_wait=timedelta(milliseconds=2))


def outgoing(count: int, patients: int) -> list[Outgoing]:
    rng = random.Random(7)
    events = []
    for place in range(count):
        patient = f"p{rng.randrange(patients)}"
        body = b'{"eventId":"%d","patientId":"%s","type":"observation"}' % (place, patient.encode())
        events.append(Outgoing(place, patient, "observation", body))
    return events


def order_of(log: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Each patient's events in the order in which they were first accepted."""
    order: dict[str, list[int]] = defaultdict(list)
    for event in log:
        if int(event["eventId"]) not in order[event["patientId"]]:
            order[event["patientId"]].append(int(event["eventId"]))
    return order


async def send_all(gateway: FakeGateway, events: list[Outgoing], **options: Any) -> Sending:
    sending = Sending()
    async with GatewayClient(gateway.url, "t", policy=QUICK) as client:
        await send_in_order(client, events, sending, policy=QUICK, **options)
    return sending


async def test_each_patients_events_arrive_in_order_while_batches_fly_at_once(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "MAX_BATCH_EVENTS", 10)
    events = outgoing(600, 40)
    sending = await send_all(gateway, events, senders=4)
    assert sending.accepted == {"observation": 600}
    assert sorted(int(event["eventId"]) for event in gateway.log) == list(range(600))
    assert all(places == sorted(places) for places in order_of(gateway.log).values())
    assert 2 <= gateway.most_in_flight <= 4


async def test_an_event_that_must_wait_is_posted_again_before_later_ones_of_its_patient(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ingest does it: once an event of a patient could not be taken, the later ones of the batch are not either."""
    monkeypatch.setattr(sender, "MAX_BATCH_EVENTS", 20)
    rng = random.Random(3)
    failures = {str(place): rng.randrange(1, 4) for place in rng.sample(range(400), 60)}
    blocked: set[tuple[int, str]] = set()

    def refuse_item(event: dict[str, Any]) -> str | None:
        request = len(gateway.seen)
        if failures.get(event["eventId"], 0):
            failures[event["eventId"]] -= 1
            blocked.add((request, event["patientId"]))
        return "unavailable" if (request, event["patientId"]) in blocked else None

    gateway.refuse_item = refuse_item
    sending = await send_all(gateway, outgoing(400, 15), senders=1)
    assert sending.accepted.total() == 400
    assert sending.retried > 60
    assert all(places == sorted(places) for places in order_of(gateway.log).values())


async def test_an_event_that_must_wait_waits_as_long_as_the_gateway_says(gateway: FakeGateway) -> None:
    gateway.retry_after = "0.5"
    began = time.monotonic()
    gateway.refuse_item = lambda _: "rate-limited" if len(gateway.seen) == 1 else None
    await send_all(gateway, outgoing(10, 2), senders=1)
    assert time.monotonic() - began >= 0.5
    assert len(gateway.seen) == 2


async def test_a_refused_event_is_told_by_its_place_and_the_others_go_on(gateway: FakeGateway) -> None:
    gateway.refuse_item = lambda event: "invalid-request" if event["eventId"] in {"3", "77"} else None
    sending = await send_all(gateway, outgoing(100, 10))
    assert sending.accepted.total() == 98
    assert sorted(rejection.place for rejection in sending.rejected) == [3, 77]


async def test_receipts_are_kept_by_place_when_asked_for(gateway: FakeGateway) -> None:
    sending = await send_all(gateway, outgoing(20, 3), keep_receipts=True)
    assert {place: receipt.event_id for place, receipt in sending.receipts.items()} == {
        place: str(place) for place in range(20)
    }


async def test_sending_gives_up_when_nothing_is_taken_any_more(gateway: FakeGateway) -> None:
    gateway.refuse_item = lambda event: "unavailable" if int(event["eventId"]) >= 50 else None
    sending = Sending()
    async with GatewayClient(gateway.url, "t", policy=QUICK) as client:
        with pytest.raises(GaveUp):
            await send_in_order(client, outgoing(100, 1), sending, policy=QUICK)
    assert sending.accepted.total() == 50


async def test_a_refusal_of_a_whole_batch_ends_the_sending(gateway: FakeGateway) -> None:
    gateway.answer_with(refuse(401, "unauthenticated"))
    sending = Sending()
    async with GatewayClient(gateway.url, "t", policy=QUICK) as client:
        with pytest.raises(Refused, match="401"):
            await send_in_order(client, outgoing(100, 1), sending, policy=QUICK)
    assert sending.done == 0


async def test_a_batch_that_is_too_large_is_halved_and_one_event_that_is_too_large_is_refused() -> None:
    class Narrow:
        async def send_batch(self, events: list[bytes]) -> list[ItemResult]:
            if len(events) > 3 or b"HUGE" in events:
                raise Refused(413, {"code": "payload-too-large", "message": "The body exceeds 3 events."})
            return [ItemResult(Receipt(event.decode(), 0, 0, "")) for event in events]

    bodies = [b"a", b"b", b"HUGE", b"d", b"e", b"f", b"g"]
    events = [Outgoing(place, "p", "observation", body) for place, body in enumerate(bodies)]
    sending = Sending()
    await send_in_order(Narrow(), events, sending, keep_receipts=True)
    assert [receipt.event_id for _, receipt in sorted(sending.receipts.items())] == ["a", "b", "d", "e", "f", "g"]
    assert [(rejection.place, rejection.code) for rejection in sending.rejected] == [(2, "payload-too-large")]


async def test_batches_keep_to_the_limit_of_bytes(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "MAX_BATCH_BYTES", 300)
    await send_all(gateway, outgoing(60, 5), senders=1)
    assert len(gateway.seen) >= 60 * 50 // 300
