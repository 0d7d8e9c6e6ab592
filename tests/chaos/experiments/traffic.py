"""Experiments 5 and 14: one event many times, one patient with half of the traffic."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from statistics import median
from typing import Any

from ..harness import Chaos, expect
from ..ledger import Entry
from ..sender import Make, Sender

__all__ = ["latencies", "one_patient_has_half", "p99", "parallel_copies"]

# What else runs on the machine shows in single turns; their median is compared.
_TURNS = 5


async def parallel_copies(chaos: Chaos) -> Mapping[str, Any]:
    """200 parallel copies of one event, over every way in, have one effect."""
    sender = chaos.sender()
    rounds = chaos.scaled(20, 3)
    for n in range(rounds):
        entry = sender.entry("p1", n + 1)
        sender.ledger.add(entry)
        await asyncio.gather(*(sender.insist([entry], url=sender.url(copy)) for copy in range(200)))
    await chaos.drained(within=60)
    found = await chaos.verdict(sender)
    applied = sum(map(len, found.applied.values()))
    expect(applied == rounds, f"{applied} effects of {rounds} events")
    return {"copies": 200, "rounds": rounds, "effects": applied}


async def one_patient_has_half(chaos: Chaos) -> Mapping[str, Any]:
    """The same load, evenly spread and with half of it one patient's, in turns: the others' p99 at most doubles."""
    rate, seconds = 300.0, chaos.scaled(30, 5)
    even, uneven = list[float](), list[float]()
    for turn in range(1, _TURNS + 1):
        even.append(p99(await _latencies_of(chaos, _even, rate=rate, seconds=seconds)))
        uneven.append(p99(await _latencies_of(chaos, _half_is_one, rate=rate, seconds=seconds)))
        chaos.say(f"turn {turn} of {_TURNS}: p99 {even[-1] * 1000:.0f} ms, the others' {uneven[-1] * 1000:.0f} ms")
    figures = {
        "p99 ms, evenly spread": round(median(even) * 1000),
        "p99 ms of the others, one has half": round(median(uneven) * 1000),
    }
    expect(median(uneven) <= 2 * median(even), f"the others' p99 more than doubles: {figures}")
    return figures


def _even(sender: Sender, count: int) -> tuple[list[str], Make]:
    """100 patients with the same number of events."""
    patients = [f"p{n}" for n in range(100)]

    def make(patient: str, number: int) -> Entry | None:
        return sender.entry(patient, number) if number <= count // 100 else None

    return patients, make


def _half_is_one(sender: Sender, count: int) -> tuple[list[str], Make]:
    patients = [f"p{n}" for n in range(50)]

    def make(patient: str, number: int) -> Entry | None:
        return sender.entry(patient, number) if number <= count // 100 else None

    return patients, make


async def _latencies_of(chaos: Chaos, load: Any, *, rate: float, seconds: int) -> list[float]:
    """Send a load; how long each event but those of the busy patient took, from its receipt to claims."""
    sender = chaos.sender()
    count = int(rate * seconds)
    patients, make = load(sender, count)
    ways = [sender.send(patients, make, rate=rate * len(patients) / 100, batch=10)]
    if len(patients) < 100:
        ways.append(flood(sender, "busy", count // 2, rate=rate / 2))
    await asyncio.gather(*ways)
    await chaos.drained(within=60)
    await chaos.verdict(sender)
    found = await latencies(chaos, sender.organization)
    return [seconds for patient, seconds in found if patient != "busy"]


async def flood(sender: Sender, patient: str, count: int, *, rate: float) -> None:
    """One patient's events in batches of its own: within a batch, the order of acceptance is that of the batch."""
    for begin in range(0, count, 30):
        entries = [sender.entry(patient, n + 1) for n in range(begin, min(begin + 30, count))]
        for entry in entries:
            sender.ledger.add(entry)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sender.insist(entries))
            tasks.create_task(asyncio.sleep(len(entries) / rate))


async def latencies(chaos: Chaos, organization: str) -> list[tuple[str, float]]:
    """Per event its patient and the seconds from its receipt to its handling in claims."""
    rows = chaos.reader.claims["patient_histories"].find(
        {"organizationId": organization}, {"patientId": 1, "receivedAt": 1, "processedAt": 1}
    )
    return [(row["patientId"], (row["processedAt"] - row["receivedAt"]).total_seconds()) async for row in rows]


def p99(values: list[float]) -> float:
    return sorted(values)[max(0, int(len(values) * 0.99) - 1)]
