"""Was every accepted event processed exactly once, and each patient's in the order of acceptance?

Everything is read through the gateway and compared with the sender's ledger:

- the patient's history holds each accepted eventId once and no other;
- the patient's own count of applied events is as large (an event applied twice would show there);
- in the order of acceptance, handling times never go back, and each event is marked late exactly if its `ts` is
  older than the newest before it (an event that overtook another would show there).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

from carebus_cli.client import Refused
from carebus_cli.demo.ledger import Accepted, Ledger

__all__ = ["HistoryReader", "Verdict", "verify"]

_AT_ONCE: Final = 4


class HistoryReader(Protocol):
    """What verifying needs of a `GatewayClient`."""

    async def patient(self, patient_id: str) -> dict[str, Any]: ...

    def history(self, patient_id: str) -> AsyncIterator[dict[str, Any]]: ...


@dataclass(slots=True)
class Verdict:
    """Counts of what went wrong; `latencies` are the seconds from each event's post to the start of its handling."""

    events: int = 0
    once: int = 0
    missing: int = 0
    repeated: int = 0
    unexpected: int = 0
    miscounted_patients: int = 0
    disordered_patients: int = 0
    late: int = 0
    flags: int = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def exactly_once_in_order(self) -> bool:
        wrong = (self.missing, self.repeated, self.unexpected, self.miscounted_patients, self.disordered_patients)
        return self.once == self.events and not any(wrong)


async def verify(reader: HistoryReader, ledger: Ledger, *, on_patient: Callable[[], None] = lambda: None) -> Verdict:
    """Read every patient's history and compare. Raises Refused, Unreachable if the gateway cannot be read."""
    verdict = Verdict(events=len(ledger.accepted))
    gate = asyncio.Semaphore(_AT_ONCE)

    async def check(patient_id: str, entries: list[Accepted]) -> None:
        async with gate:
            try:
                history = [item async for item in reader.history(patient_id)]
                summary = await reader.patient(patient_id)
            except Refused as refused:
                if refused.status != 404:
                    raise
                history, summary = [], {"eventTotal": 0, "lateTotal": 0}
        compare(verdict, entries, history, summary)
        on_patient()

    await asyncio.gather(*(check(patient_id, entries) for patient_id, entries in ledger.by_patient().items()))
    return verdict


def compare(
    verdict: Verdict, entries: list[Accepted], history: Iterable[Mapping[str, Any]], summary: Mapping[str, Any]
) -> None:
    """Add one patient to `verdict`: what was accepted, in the log's order, against what the gateway serves."""
    items: dict[str, Mapping[str, Any]] = {}
    seen: Counter[str] = Counter()
    for item in history:
        seen[item["eventId"]] += 1
        items[item["eventId"]] = item
    expected = [entry.event.event_id for entry in entries]
    verdict.once += sum(seen[event_id] == 1 for event_id in expected)
    verdict.missing += sum(seen[event_id] == 0 for event_id in expected)
    verdict.repeated += sum(count - 1 for count in seen.values())
    verdict.unexpected += len(seen.keys() - set(expected))
    verdict.miscounted_patients += summary["eventTotal"] != len(expected)
    verdict.late += sum(bool(item["late"]) for item in items.values())
    verdict.flags += sum(len(item["flags"]) for item in items.values())

    found = [(entry, items[entry.event.event_id]) for entry in entries if entry.event.event_id in items]
    verdict.disordered_patients += not _in_order(found)
    for entry, item in found:
        verdict.latencies.append(_time(item["processedAt"]).timestamp() - entry.posted_at)


def _in_order(found: list[tuple[Accepted, Mapping[str, Any]]]) -> bool:
    handled: datetime | None = None
    newest: datetime | None = None
    for entry, item in found:
        at, ts = _time(item["processedAt"]), _time(entry.event.body["ts"])
        if handled is not None and at < handled:
            return False
        if bool(item["late"]) != (newest is not None and ts < newest):
            return False
        handled, newest = at, ts if newest is None else max(newest, ts)
    return True


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
