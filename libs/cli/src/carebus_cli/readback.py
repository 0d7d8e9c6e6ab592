"""Reads back through the gateway what was processed, to compare it with what was sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from carebus_cli.client import Refused

__all__ = ["PatientReader", "count_patients", "counts_by_type", "wait_for_counts"]

_AT_ONCE: Final = 4


class PatientReader(Protocol):
    """What reading back needs of a `GatewayClient`."""

    async def patient(self, patient_id: str) -> dict[str, Any]: ...


async def count_patients(reader: PatientReader, patient_ids: Iterable[str]) -> dict[str, Counter[str]]:
    """Events per type in each patient's history; nothing for a patient that is not known (yet)."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def count(patient_id: str) -> Counter[str]:
        async with gate:
            try:
                return counts_by_type(await reader.patient(patient_id))
            except Refused as refused:
                if refused.status == 404:
                    return Counter()
                raise

    ids = list(patient_ids)
    return dict(zip(ids, await asyncio.gather(*map(count, ids)), strict=True))


def counts_by_type(patient: Mapping[str, Any]) -> Counter[str]:
    """The counts of one patient's answer, by canonical event type; of types it has no room for, under `""`."""
    return Counter(patient["counts"]) + Counter({"": patient["otherTypes"]})


async def wait_for_counts(
    reader: PatientReader,
    expected: Mapping[str, int],
    *,
    stall_after: float,
    on_counts: Callable[[int], None] = lambda _: None,
) -> dict[str, Counter[str]]:
    """Read until each patient has at least as many events as `expected`, or nothing changes for `stall_after` seconds.

    Patients that are complete are not asked again while the others are awaited; at the end all are read once
    more, so that an event counted twice shows. `on_counts` is told the events seen so far, expected ones only.
    """
    counts: dict[str, Counter[str]] = {}
    loop = asyncio.get_running_loop()
    changed_at, seen_before = loop.time(), -1
    missing = list(expected)
    while missing:
        began = loop.time()
        counts |= await count_patients(reader, missing)
        missing = [patient_id for patient_id in missing if counts[patient_id].total() < expected[patient_id]]
        seen = sum(min(count.total(), expected[patient_id]) for patient_id, count in counts.items())
        on_counts(seen)
        if seen != seen_before:
            changed_at, seen_before = loop.time(), seen
        elif loop.time() - changed_at > stall_after:
            break
        if missing:
            # Asking costs the same machine's time as processing: never more than a fifth of it.
            await asyncio.sleep(max(0.25, 4 * (loop.time() - began)))
    return await count_patients(reader, expected)
