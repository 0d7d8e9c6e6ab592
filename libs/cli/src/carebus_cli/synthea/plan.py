"""A whole Synthea export as events in time order, and what the CSV says must come of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from carebus_cli.synthea.mapping import MappedEvent, Occurrences, event_types, events_of
from carebus_cli.synthea.reader import FILES, BadRow, Row, locate, read

__all__ = ["Plan", "plan"]


@dataclass(slots=True)
class Plan:
    """`events` in time order; `rows` per file and `expected` events per type, counted from the rows themselves."""

    events: list[MappedEvent] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=Counter)
    bad: list[BadRow] = field(default_factory=list)

    @property
    def patients(self) -> set[str]:
        return {event.patient_id for event in self.events}


def plan(directory: Path, *, strict: bool = False, on_row: Callable[[str], None] = lambda _: None) -> Plan:
    """Read all files and sort. The sort is in memory, about 1 KB an event: a million rows want 1 GB.

    `expected` counts every row of the right shape, also one that a bad value keeps from becoming an event, so
    that the final comparison shows what is missing. `on_row` is called with the file's name for each row.
    Raises MissingFile; with `strict` BadRow for the first bad row, else bad rows are left out and listed.
    """
    made = Plan()
    paths = locate(directory)
    encounter_starts: dict[str, str] = {}
    seen: Occurrences = Counter()
    for name in FILES:  # encounters come first: the other files' rows refer to them
        for row in read(name, paths[name]):
            on_row(name)
            made.rows[name] += 1
            try:
                made.events.extend(_events(row, made.expected, encounter_starts, seen))
            except BadRow as bad:
                if strict:
                    raise
                made.bad.append(bad)
    made.events.sort(key=lambda event: event.order)  # stable: rows of equal place keep the files' order
    return made


def _events(
    row: Row | BadRow, expected: Counter[str], encounter_starts: dict[str, str], seen: Occurrences
) -> list[MappedEvent]:
    if isinstance(row, BadRow):
        raise row
    expected.update(event_types(row))
    events = list(events_of(row, encounter_starts, seen))
    if row.file == "encounters":
        encounter_starts[row.values["Id"]] = row.values["START"]
    return events
