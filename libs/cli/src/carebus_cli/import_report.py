"""What an import came to: the counts of the CSV beside those that the gateway serves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from rich.table import Table

from carebus_cli.meter import plain, stderr, stdout
from carebus_cli.sender import Rejection
from carebus_cli.synthea.reader import BadRow

__all__ = ["ImportReport", "show_bad_rows", "show_report"]

_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class ImportReport:
    """Counts per event type: `expected` from the CSV's rows, `accepted` now, `processed` as read back at the end.

    `before` was there at the start, from an earlier import. `wrong_patients` have another number of events than
    the CSV gives them. `total_seconds` run from the first post until all were seen to be processed.
    """

    rows: Counter[str]
    expected: Counter[str]
    before: Counter[str]
    accepted: Counter[str]
    processed: Counter[str]
    bad_rows: list[str]
    rejected: list[tuple[str, Rejection]]
    patients: int
    wrong_patients: int
    send_seconds: float
    total_seconds: float

    @property
    def complete(self) -> bool:
        """Every row was good, accepted, and processed exactly once."""
        return (
            not self.bad_rows
            and not self.rejected
            and not self.wrong_patients
            and self.accepted == self.expected
            and self.processed == self.expected
        )

    @property
    def events_per_second(self) -> float | None:
        """From the first post to the last processed; None if all were there before and nothing had to be."""
        new = self.processed.total() - self.before.total()
        return new / self.total_seconds if new > 0 and self.total_seconds > 0 else None

    def as_json(self) -> dict[str, Any]:
        return {
            "complete": self.complete,
            "rows": dict(self.rows),
            "types": {
                name: {
                    "expected": self.expected[name],
                    "before": self.before[name],
                    "accepted": self.accepted[name],
                    "processed": self.processed[name],
                }
                for name in self._types()
            },
            "patients": self.patients,
            "wrongPatients": self.wrong_patients,
            "badRows": self.bad_rows,
            "rejected": [
                {"row": row, "code": rejection.code, "message": rejection.message, "details": rejection.details}
                for row, rejection in self.rejected
            ],
            "sendSeconds": round(self.send_seconds, 3),
            "totalSeconds": round(self.total_seconds, 3),
            "eventsPerSecond": None if self.events_per_second is None else round(self.events_per_second, 1),
        }

    def table(self) -> Table:
        table = Table("event type", title="rows of the CSV and what the gateway serves")
        for column in ("in the CSV", "there before", "accepted", "processed"):
            table.add_column(column, justify="right")
        table.add_column("")
        for name in self._types():
            counts = (self.expected[name], self.before[name], self.accepted[name], self.processed[name])
            table.add_row(plain(name), *(f"{count:,}" for count in counts), _verdict(counts[0], counts[2], counts[3]))
        totals = (self.expected.total(), self.before.total(), self.accepted.total(), self.processed.total())
        table.add_section()
        table.add_row("all", *(f"{count:,}" for count in totals), _verdict(totals[0], totals[2], totals[3]))
        return table

    def _types(self) -> list[str]:
        return sorted(self.expected.keys() | self.before.keys() | self.processed.keys())


def _verdict(expected: int, accepted: int, processed: int) -> str:
    if processed > expected:
        return "too many"
    return "ok" if accepted == processed == expected else "missing"


def show_bad_rows(bad: list[BadRow]) -> None:
    for row in bad[:_SHOWN]:
        stderr.print(plain(row), style="yellow")
    if len(bad) > _SHOWN:
        stderr.print(f"and {len(bad) - _SHOWN:,} more bad rows")


def show_report(report: ImportReport) -> None:
    """Print the table and the figures; what went wrong goes to stderr."""
    stdout.print(report.table())
    rows = ", ".join(f"{count:,} {name}" for name, count in report.rows.items())
    stdout.print(f"rows: {rows} (an encounter is an admission and a discharge)")
    for row, rejection in report.rejected[:_SHOWN]:
        stderr.print(f"{plain(row)}: {plain(rejection.code)}: {plain(rejection.message)}", style="red")
    rate = report.events_per_second
    if rate is None:
        stdout.print(f"{report.accepted.total():,} events accepted in {report.send_seconds:.1f} s, all duplicates")
    else:
        stdout.print(
            f"{report.accepted.total():,} events of {report.patients:,} patients: accepted in "
            f"{report.send_seconds:.1f} s, processed in {report.total_seconds:.1f} s: {rate:,.0f} events/s end to end"
        )
    if report.wrong_patients:
        stderr.print(f"{report.wrong_patients:,} patients have another number of events than the CSV.", style="red")
    if any(report.before[name] > report.expected[name] for name in report.before):
        stderr.print("The organization had other events of these patients before: import into another with --org.")
    stdout.print("complete: every row accepted and processed exactly once" if report.complete else "NOT complete")
