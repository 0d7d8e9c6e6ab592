from datetime import UTC, datetime
from typing import Any

import pytest

from carebus_cli.client import GatewayClient, Receipt
from carebus_cli.demo.ledger import Accepted, Ledger, percentile
from carebus_cli.demo.sample_day import SampleEvent, sample_day
from carebus_cli.demo.stream import stream
from carebus_cli.demo.verify import Verdict, compare

from .conftest import FakeGateway, refuse


def entry(number: int, hour: int) -> Accepted:
    body = {"eventId": f"e{number}", "patientId": "p", "type": "observation", "ts": f"2026-03-17T{hour:02d}:00:00Z"}
    receipt = Receipt(f"e{number}", 0, number, "")
    return Accepted(SampleEvent(body), receipt, posted_at=_at(number) - 0.25, acknowledged_at=_at(number) - 0.2)


def _at(number: int) -> float:
    return datetime(2026, 11, 23, 12, 0, number, tzinfo=UTC).timestamp()


def item(number: int, *, late: bool = False, handled: int | None = None) -> dict[str, Any]:
    at = datetime.fromtimestamp(_at(number if handled is None else handled), UTC).isoformat()
    return {"eventId": f"e{number}", "processedAt": at, "late": late, "flags": []}


# The third happened before the second: late.
ENTRIES = [entry(1, 8), entry(2, 11), entry(3, 10), entry(4, 11)]
HISTORY = [item(4), item(3, late=True), item(2), item(1)]


def verdict_of(history: list[dict[str, Any]], total: int = 4) -> Verdict:
    verdict = Verdict(events=len(ENTRIES))
    compare(verdict, ENTRIES, history, {"eventTotal": total})
    return verdict


def test_a_history_of_each_event_once_in_order_is_right() -> None:
    verdict = verdict_of(HISTORY)
    assert verdict.exactly_once_in_order
    assert (verdict.once, verdict.late) == (4, 1)
    assert verdict.latencies == pytest.approx([0.25] * 4)


@pytest.mark.parametrize(
    ("history", "total", "count"),
    [
        ([item(4), item(3, late=True), item(2)], 3, "missing"),
        ([], 0, "missing"),
        ([*HISTORY, item(2)], 4, "repeated"),
        ([*HISTORY, item(9)], 5, "unexpected"),
        (HISTORY, 5, "miscounted_patients"),
        ([item(4), item(3, late=True, handled=1), item(2), item(1)], 4, "disordered_patients"),
        ([item(4), item(3), item(2), item(1)], 4, "disordered_patients"),
        ([item(4, late=True), item(3, late=True), item(2), item(1)], 4, "disordered_patients"),
    ],
    ids=["one missing", "nothing", "repeated", "unexpected", "applied twice", "overtaken", "not late", "wrongly late"],
)
def test_whatever_is_wrong_is_found(history: list[dict[str, Any]], total: int, count: str) -> None:
    verdict = verdict_of(history, total)
    assert not verdict.exactly_once_in_order
    assert getattr(verdict, count) > 0


def test_the_first_place_in_the_log_is_the_one_that_counts() -> None:
    ledger = Ledger()
    event = ENTRIES[0].event
    for offset in (7, 3, 9):
        ledger.note(event, Receipt("e1", 0, offset, ""), posted_at=float(offset), acknowledged_at=float(offset))
    assert ledger.accepted["e1"].receipt.offset == 3
    assert (ledger.posts, ledger.duplicates, len(ledger.accepted)) == (3, 2, 1)


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(1, 201)]
    assert [percentile(values, percent) for percent in (50, 99, 100)] == [100.0, 198.0, 200.0]
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) is None


async def test_the_day_is_posted_in_each_patients_order(gateway: FakeGateway) -> None:
    day = sample_day("run", patients=12)
    ledger = Ledger()
    async with GatewayClient(gateway.url, "t") as client:
        await stream(client, day, ledger, rate=5000)
    assert ledger.posts == len(day)
    assert ledger.duplicates == sum(event.resent for event in day)
    sent = [posted["eventId"] for posted in gateway.log]
    for patient in {event.patient_id for event in day}:
        own = [event.event_id for event in day if event.patient_id == patient]
        assert [event_id for event_id in sent if event_id in set(own)] == own


async def test_a_refused_post_is_noted_and_the_day_goes_on(gateway: FakeGateway) -> None:
    day = sample_day("run", patients=3)
    gateway.answer_with(refuse(400, "invalid-request"))
    ledger = Ledger()
    async with GatewayClient(gateway.url, "t") as client:
        await stream(client, day, ledger, rate=5000)
    assert ledger.failed == ["400 invalid-request"]
    assert ledger.posts == len(day)
