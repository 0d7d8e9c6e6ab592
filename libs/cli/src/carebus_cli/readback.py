"""Reads back through the gateway what was processed, to compare it with what was sent."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from carebus_cli.client import Refused

__all__ = ["PatientReader", "count_patients", "counts_by_type", "wait_for_counts"]

_AT_ONCE: Final = 4
_SAMPLE: Final = 8


class PatientReader(Protocol):
    """What reading back needs of a `GatewayClient`."""

    async def patient(self, patient_id: str) -> dict[str, Any]: ...


async def count_patients(
    reader: PatientReader, patient_ids: Iterable[str], *, on_patient: Callable[[], None] = lambda: None
) -> dict[str, Counter[str]]:
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
            finally:
                on_patient()

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
    on_progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Read until each patient has at least as many events as `expected`, or nothing changes for `stall_after` seconds.

    Asking costs the same machine's time as processing, so a few patients stand for all of them until those are
    complete, and then the others are asked. `on_progress` is told how many events there are by this estimate, and
    in the end the true number. What was seen on the way is not the last word, so nothing is returned: read anew
    with `count_patients`, and an event that was counted twice shows.
    """
    loop = asyncio.get_running_loop()
    changed_at = loop.time()
    counts: dict[str, int] = {}
    missing = sorted(expected)
    while missing:
        some = random.sample(missing, min(_SAMPLE, len(missing)))
        found = await _totals(reader, some)
        if all(found[patient_id] >= expected[patient_id] for patient_id in some) and len(some) < len(missing):
            found |= await _totals(reader, [patient_id for patient_id in missing if patient_id not in found])
        if any(counts.get(patient_id, 0) != count for patient_id, count in found.items()):
            changed_at = loop.time()
        counts |= found
        missing = [patient_id for patient_id in missing if counts.get(patient_id, 0) < expected[patient_id]]
        on_progress(_estimate(expected, missing, found))
        if loop.time() - changed_at > stall_after:
            break
        if missing:
            await asyncio.sleep(0.5)


async def _totals(reader: PatientReader, patient_ids: Iterable[str]) -> dict[str, int]:
    counts = await count_patients(reader, patient_ids)
    return {patient_id: count.total() for patient_id, count in counts.items()}


def _estimate(expected: Mapping[str, int], missing: list[str], found: Mapping[str, int]) -> int:
    """All events of the complete patients, and of the others the share that those just asked have."""
    open_events = sum(expected[patient_id] for patient_id in missing)
    asked = {patient_id: count for patient_id, count in found.items() if count < expected[patient_id]}
    asked_events = sum(expected[patient_id] for patient_id in asked)
    share = sum(asked.values()) / asked_events if asked_events else 0.0
    return sum(expected.values()) - open_events + int(open_events * share)
