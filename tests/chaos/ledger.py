"""What a sender knows: each event it sent, in each patient's order, and every answer it got."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Entry", "Ledger"]


@dataclass(slots=True)
class Entry:
    """One event. `answers` has a status for each attempt, None where no answer came (or none that is one: 5xx)."""

    event_id: str
    patient: str  # organizationId/patientId
    number: int
    valid: bool = True
    answers: list[int | None] = field(default_factory=list)
    document: dict[str, Any] | None = None

    @property
    def accepted(self) -> bool:
        return 202 in self.answers

    @property
    def perhaps(self) -> bool:
        """Not accepted, but it may have been stored: at most once."""
        return not self.accepted and None in self.answers


class Ledger:
    """Entries by eventId, and by patient in the order of sending."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.entries: dict[str, Entry] = {}
        self.patients: dict[str, list[Entry]] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Note an event just before its first attempt; its patient's earlier ones have been answered."""
        assert entry.event_id not in self.entries, "an eventId is used for one event only"
        self.entries[entry.event_id] = entry
        self.patients.setdefault(entry.patient, []).append(entry)

    def accepted(self) -> int:
        return sum(entry.accepted for entry in self)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def __len__(self) -> int:
        return len(self.entries)
