import json
from typing import Any

import pytest

from carebus_cli.client import Receipt
from carebus_cli.demo.lag import Lag
from carebus_cli.demo.ledger import Ledger
from carebus_cli.demo.probe import Probe
from carebus_cli.demo.sample_day import SampleEvent
from carebus_cli.demo.summary import Summary, show
from carebus_cli.demo.verify import Verdict
from carebus_cli.demo.view import LiveView


class NoReader:
    async def event(self, event_id: str, *, partition: int | None = None, offset: int | None = None) -> dict[str, Any]:
        raise AssertionError("nothing is read")


def ledger_of(posts: int) -> Ledger:
    ledger = Ledger()
    for number in range(posts):
        event = SampleEvent({"eventId": f"e{number % 9}", "patientId": "p", "type": "t", "ts": "2026-03-17T08:00:00Z"})
        ledger.note(event, Receipt(f"e{number % 9}", 0, number, ""), posted_at=1000.0, acknowledged_at=1000.01)
    return ledger


def summary_of(ledger: Ledger, verdict: Verdict) -> Summary:
    probe = Probe(NoReader(), ledger, latencies=[0.02, 0.05], first_at=1000.5)
    return Summary("run", ledger, verdict, probe, 990.0, 2.0, "http://h/patients/p/history", "curl …", [])


RIGHT = Verdict(events=9, once=9, latencies=[0.01] * 9)


def test_the_day_is_complete_if_all_was_accepted_and_processed_once(capsys: pytest.CaptureFixture[str]) -> None:
    summary = summary_of(ledger_of(10), RIGHT)
    assert summary.complete
    answer = json.loads(json.dumps(summary.as_json()))
    assert (answer["posts"], answer["accepted"], answer["duplicates"]) == (10, 9, 1)
    assert answer["secondsToFirstProcessed"] == 10.5
    assert answer["latencySeconds"]["postToServed"] == {"p50": 0.02, "p99": 0.05, "count": 2}
    show(summary)
    shown = capsys.readouterr()
    assert "Every accepted event was processed exactly once, in its patient's order." in shown.out
    assert "curl …" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        (Verdict(events=9, once=8, missing=1), "1 missing"),
        (Verdict(events=9, once=8, repeated=1), "1 repeated in a history"),
        (Verdict(events=9, once=9, unexpected=2), "2 unexpected in a history"),
        (Verdict(events=9, once=9, miscounted_patients=1), "1 patients with another count"),
        (Verdict(events=9, once=9, disordered_patients=1), "1 patients out of order"),
    ],
)
def test_what_went_wrong_is_told(verdict: Verdict, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = summary_of(ledger_of(10), verdict)
    assert not summary.complete
    show(summary)
    shown = capsys.readouterr()
    assert told in shown.err
    assert "NOT every accepted event" in shown.err
    assert "Every accepted event" not in shown.out


def test_a_day_with_a_failed_post_or_without_any_is_not_complete(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = ledger_of(10)
    ledger.fail("503 unavailable")
    assert not summary_of(ledger, RIGHT).complete
    assert not summary_of(Ledger(), Verdict()).complete
    show(summary_of(ledger, RIGHT))
    assert "1 posts failed: 503 unavailable" in capsys.readouterr().err


def test_without_a_terminal_a_plain_line_tells_the_state(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = ledger_of(10)
    with LiveView(20, ledger, Probe(NoReader(), ledger, latencies=[0.02])) as view:
        view.tick({})
        view.begin({"carebus-processor": Lag(committed=100, behind=0)})
        view.tick({"carebus-processor": Lag(committed=107, behind=3)})
    unknown, known = capsys.readouterr().err.splitlines()
    assert "processed -, lag -" in unknown
    assert "accepted 10 of 20" in known
    assert "1 of them duplicates; processed 7, lag 3; post to processed p50 20 ms, p99 20 ms" in known
