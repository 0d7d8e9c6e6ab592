"""What the demo came to, for people and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from carebus_cli.demo.ledger import Ledger, percentile
from carebus_cli.demo.probe import Probe
from carebus_cli.demo.verify import Verdict
from carebus_cli.demo.view import milliseconds
from carebus_cli.meter import plain, stderr, stdout
from carebus_cli.reading import print_history

__all__ = ["Summary", "show"]


@dataclass(frozen=True, slots=True)
class Summary:
    """The ledger, the verdict and the probes of one run; `started_at` is when the command (or make) was called."""

    run: str
    ledger: Ledger
    verdict: Verdict
    probe: Probe
    started_at: float
    stream_seconds: float
    patient_url: str
    curl: str
    history: list[dict[str, Any]]

    @property
    def complete(self) -> bool:
        """Every post was accepted, and every accepted event processed exactly once and in order."""
        return bool(self.ledger.accepted) and not self.ledger.failed and self.verdict.exactly_once_in_order

    @property
    def seconds_to_first(self) -> float | None:
        return None if self.probe.first_at is None else self.probe.first_at - self.started_at

    def as_json(self) -> dict[str, Any]:
        acknowledged = [entry.acknowledged_at - entry.posted_at for entry in self.ledger.accepted.values()]
        return {
            "run": self.run,
            "complete": self.complete,
            "posts": self.ledger.posts,
            "accepted": len(self.ledger.accepted),
            "duplicates": self.ledger.duplicates,
            "failed": dict(Counter(self.ledger.failed)),
            "processedOnce": self.verdict.once,
            "missing": self.verdict.missing,
            "repeated": self.verdict.repeated,
            "unexpected": self.verdict.unexpected,
            "miscountedPatients": self.verdict.miscounted_patients,
            "disorderedPatients": self.verdict.disordered_patients,
            "late": self.verdict.late,
            "flags": self.verdict.flags,
            "secondsToFirstProcessed": _rounded(self.seconds_to_first),
            "streamSeconds": round(self.stream_seconds, 3),
            "latencySeconds": {
                "postToAcknowledged": _percentiles(acknowledged),
                "postToHandled": _percentiles(self.verdict.latencies),
                "postToServed": _percentiles(self.probe.latencies),
            },
            "patientHistoryUrl": self.patient_url,
        }


def _percentiles(values: list[float]) -> dict[str, float | int | None]:
    return {"p50": _rounded(percentile(values, 50)), "p99": _rounded(percentile(values, 99)), "count": len(values)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def show(summary: Summary) -> None:
    """Print the summary, one patient's newest events, and how to ask for them; what went wrong to stderr."""
    ledger, verdict = summary.ledger, summary.verdict
    acknowledged = [entry.acknowledged_at - entry.posted_at for entry in ledger.accepted.values()]
    rate = ledger.posts / summary.stream_seconds if summary.stream_seconds else 0.0
    table = Table(title="the day in figures", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("accepted events", f"{len(ledger.accepted):,}")
    table.add_row("processed exactly once", f"{verdict.once:,}")
    table.add_row("duplicates, accepted and without effect", f"{ledger.duplicates:,}")
    table.add_row("late, marked so", f"{verdict.late:,}")
    table.add_row("values outside their range, flagged", f"{verdict.flags:,}")
    table.add_row("posts a second", f"{rate:,.0f}")
    for name, values in (
        ("POST to 202", acknowledged),
        ("POST to handled by the processor", verdict.latencies),
        ("POST to served as processed (sampled)", summary.probe.latencies),
    ):
        table.add_row(f"{name}, p50", milliseconds(percentile(values, 50)))
        table.add_row(f"{name}, p99", milliseconds(percentile(values, 99)))
    if summary.seconds_to_first is not None:
        table.add_row("start to first processed event", f"{summary.seconds_to_first:.1f} s")
    stdout.print(table)
    print_history(summary.history)
    stdout.print(f"That was {plain(summary.patient_url)}. Ask for it yourself:")
    stdout.print(f"\n{plain(summary.curl)}\n")
    for reason, count in Counter(ledger.failed).items():
        stderr.print(f"{count:,} posts failed: {plain(reason)}", style="red")
    if summary.complete:
        stdout.print("Every accepted event was processed exactly once, in its patient's order.")
        return
    wrong = {
        "missing": verdict.missing,
        "repeated in a history": verdict.repeated,
        "unexpected in a history": verdict.unexpected,
        "patients with another count": verdict.miscounted_patients,
        "patients out of order": verdict.disordered_patients,
    }
    for name, count in wrong.items():
        if count:
            stderr.print(f"{count:,} {name}", style="red")
    stderr.print("NOT every accepted event was processed exactly once and in order.", style="red")
