"""What the sender knows: which events it posted, and what the broker acknowledged. The oracle of the verification."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from carebus_cli.client import Receipt
from carebus_cli.demo.sample_day import SampleEvent

__all__ = ["Accepted", "Ledger", "percentile"]


@dataclass(slots=True)
class Accepted:
    """An accepted event: its first place in the log, when its post began and was acknowledged (Unix seconds)."""

    event: SampleEvent
    receipt: Receipt
    posted_at: float
    acknowledged_at: float


@dataclass(slots=True)
class Ledger:
    """`accepted` by eventId, `duplicates` posts of an event accepted before, `failed` posts with their reason."""

    accepted: dict[str, Accepted] = field(default_factory=dict)
    posts: int = 0
    duplicates: int = 0
    failed: list[str] = field(default_factory=list)
    newest: Accepted | None = None

    def note(self, event: SampleEvent, receipt: Receipt, posted_at: float, acknowledged_at: float) -> None:
        """Record an acknowledged post. Of posts of one event the first in the log is the one that counts."""
        self.posts += 1
        entry = Accepted(event, receipt, posted_at, acknowledged_at)
        first = self.accepted.get(event.event_id)
        if first is None:
            self.newest = entry
        else:
            self.duplicates += 1
        if first is None or receipt.offset < first.receipt.offset:
            self.accepted[event.event_id] = entry

    def fail(self, reason: str) -> None:
        self.posts += 1
        self.failed.append(reason)

    def by_patient(self) -> dict[str, list[Accepted]]:
        """Each patient's accepted events, in the order in which the log has them."""
        patients: dict[str, list[Accepted]] = defaultdict(list)
        for entry in self.accepted.values():
            patients[entry.event.patient_id].append(entry)
        for entries in patients.values():
            # A patient's events are all in one partition.
            entries.sort(key=lambda entry: entry.receipt.offset)
        return dict(patients)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
