"""Experiments 6 to 8: what fails parks its patient, and nobody overtakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

from ..harness import Chaos, Failed, expect, until
from ..ledger import Entry
from ..operations import redrive_all, resume
from ..oracle import Found
from ..sender import Make, Sender
from .traffic import latencies, p99

__all__ = ["always_failing", "killed_while_parking", "third_of_twenty", "transient_failures"]

_EVENTS, _FAILING = 20, 3
_TURNS = 3
_LIMIT = 100


def failing_third(sender: Sender, **fails: Any) -> Make:
    """20 events a patient, of which the third one fails until its problem is solved."""

    def make(patient: str, number: int) -> Entry | None:
        if number > _EVENTS:
            return None
        return sender.entry(patient, number, "chaos", **fails) if number == _FAILING else sender.entry(patient, number)

    return make


async def third_of_twenty(chaos: Chaos) -> Mapping[str, Any]:
    """Event 3 of 20 fails: 4 to 20 are not applied before it, a redrive applies 3 to 20 in order, and the other
    patients' p99 at most doubles, compared with the same load of which nothing fails."""
    failing = chaos.scaled(100, 10)
    without, beside = list[float](), list[float]()
    parked: list[Sender] = []
    for _ in range(_TURNS):
        without.append(await _others_p99(chaos, chaos.sender(), failing))
        parked.append(chaos.sender())
        beside.append(await _others_p99(chaos, parked[-1], failing, fail="permanent"))
    await chaos.drained(within=60)
    for sick in parked:
        found = await chaos.verdict(sick)
        expect(len(found.dead_letters) == failing, f"{len(found.dead_letters)} dead letters of {failing} patients")
        for patient in sick.ledger.patients:
            applied, waiting = len(found.applied.get(patient, ())), len(found.parked.get(patient, ()))
            expect(
                (applied, waiting) == (_FAILING - 1, _EVENTS - _FAILING),
                f"{patient}: {applied} applied, {waiting} wait",
            )
    figures = {
        "patients that fail": failing * _TURNS,
        "others' p99 ms, without": round(median(without) * 1000),
        "others' p99 ms, beside": round(median(beside) * 1000),
    }
    expect(median(beside) <= 2 * median(without), f"the others' p99 more than doubles: {figures}")
    for sick in parked:
        chaos.fix(sick.organization)
        await redrive_all(chaos, sick.organization)
    await chaos.drained(within=60)
    for sick in parked:
        await all_applied(chaos, sick)
    return figures


async def _others_p99(chaos: Chaos, sick: Sender, patients: int, **fails: Any) -> float:
    """The p99 of 100 patients' events, in seconds, while `sick` sends 20 events of each of some more patients."""
    sender = chaos.sender()
    each = chaos.scaled(100, 10)
    async with asyncio.TaskGroup() as sending:
        names = [f"sick{n}" for n in range(patients)]
        sending.create_task(sick.send(names, failing_third(sick, **fails), rate=50, batch=5))
        others = [f"p{n}" for n in range(100)]
        await sender.send(others, lambda p, n: sender.entry(p, n) if n <= each else None, rate=200, batch=10, workers=4)
    await asyncio.sleep(1)
    await chaos.reader.caught_up(within=60)
    await chaos.verdict(sender)
    return p99([seconds for _, seconds in await latencies(chaos, sender.organization)])


async def all_applied(chaos: Chaos, sender: Sender) -> Found:
    """What was accepted has been applied, all of it, and nobody is parked."""
    found = await chaos.verdict(sender)
    mine = {"organizationId": sender.organization}
    left = {
        "parked events": await chaos.reader.processor["parked_events"].count_documents(mine),
        "open dead letters": sum(one.status == "open" for one in found.dead_letters),
        "parked patients": await chaos.reader.processor["parked_patients"].count_documents(mine),
        "patients' rows": await chaos.reader.processor["patients"].count_documents({**mine, "parked": {"$ne": False}}),
    }
    if any(left.values()):
        raise Failed(f"somebody is parked still: {left}", frozenset({"stuck"}))
    return found


async def killed_while_parking(chaos: Chaos) -> Mapping[str, Any]:
    """The same with kill -9 of processors during parking and during the redrive, while new events arrive."""
    patients = chaos.scaled(300, 40)
    sender = chaos.sender()
    stop = asyncio.Event()

    def make(patient: str, number: int) -> Entry | None:
        if number == _FAILING:
            return sender.entry(patient, number, "chaos", fail="permanent")
        if number % 7 == 0:
            return sender.entry(patient, number, "chaos", fail="transient", times=1)
        return sender.entry(patient, number)

    names = [f"sick{n}" for n in range(patients)]
    sending = asyncio.create_task(sender.send(names, make, rate=patients, batch=10, stop=stop))
    kills = chaos.scaled(20, 4)
    try:
        async with killing(chaos, kills):

            async def parked() -> bool:
                return len(sender.ledger) >= 5 * patients and await _open(chaos, sender) >= 0.9 * patients

            await until(parked, within=180, what="the patients are parked behind dead letters")
        chaos.say(f"{await _open(chaos, sender)} dead letters; redriving, while new events arrive")
        chaos.fix(sender.organization)
        asked = 0
        async with killing(chaos, kills):

            async def redriven() -> bool:
                nonlocal asked
                asked += await redrive_all(chaos, sender.organization)
                await asyncio.sleep(2)
                return await _open(chaos, sender) == 0

            await until(redriven, within=180, what="every dead letter is redriven")
    finally:
        stop.set()
        await sending
    await chaos.processes.healthy(within=60)
    # What was parked by the last kill was redriven by nobody yet.
    await redrive_all(chaos, sender.organization)
    drained = await chaos.drained(within=120)
    await all_applied(chaos, sender)
    return {
        "events": len(sender.ledger),
        "patients": patients,
        "kills": chaos.processes.kills.total(),
        "redrives asked for": asked,
        "drained after seconds": round(drained, 1),
    }


async def transient_failures(chaos: Chaos) -> Mapping[str, Any]:
    """What is smallest to tell a retry that overtakes: event 3 of 20 fails once, while the next ones arrive."""
    sender = chaos.sender()
    patients = [f"sick{n}" for n in range(40)]
    await sender.send(patients, failing_third(sender, fail="transient", times=1), rate=120, batch=10)
    await chaos.drained(within=60)
    await all_applied(chaos, sender)
    return {"events": len(sender.ledger)}


async def _open(chaos: Chaos, sender: Sender) -> int:
    letters = chaos.reader.processor["dead_letters"]
    return await letters.count_documents({"organizationId": sender.organization, "status": "open"})


@asynccontextmanager
async def killing(chaos: Chaos, count: int, *, every: tuple[float, float] = (0.5, 5.0)) -> AsyncIterator[None]:
    """So many times, kill -9 of a processor that is up; all of them before the block ends.

    A group whose members die faster than their sessions end never comes to work, so it is a number and not a time.
    """

    async def kill() -> None:
        left = count
        while left:
            await asyncio.sleep(chaos.rng.uniform(*every))
            if up := chaos.processes.up("processor"):
                left -= chaos.processes.kill(chaos.rng.choice(up))

    task = asyncio.create_task(kill())
    try:
        yield
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def always_failing(chaos: Chaos) -> Mapping[str, Any]:
    """A handler that always fails stops the consumer at the limit, though every process was killed on the way; it
    stays stopped through another kill, and goes on when it is told to."""
    sender = chaos.sender()
    before = _LIMIT * 6 // 10
    await _failing(sender, before, "a")

    async def counted() -> bool:
        return bool((await _failures(chaos))["consecutive"] >= before)

    await until(counted, within=60, what=f"{before} failures are counted")
    await _kill_all(chaos)
    expect((await _failures(chaos))["consecutive"] >= before, "the counter did not survive a kill")
    await _failing(sender, 3 * _LIMIT, "b")

    async def stopped() -> bool:
        row = await chaos.reader.processor["consumers"].find_one({"_id": "carebus-processor"})
        return bool(row and row["paused"])

    await until(stopped, within=60, what="the consumer stops itself")
    parked = await chaos.reader.processor["parked_patients"].count_documents({"organizationId": sender.organization})
    chaos.say(f"the consumer has stopped itself with {parked} patients parked")
    expect(_LIMIT <= parked <= 3 * _LIMIT, f"{parked} patients were parked when it stopped")
    await _kill_all(chaos, healthy=False)

    async def red() -> bool:
        status, text = await chaos.health("processor")
        return status == 503 and "stopped" in text

    await until(red, within=60, what="health is red after a kill, because the consumer is stopped")
    expect(await stopped(), "the consumer went on by itself")
    chaos.fix(sender.organization)
    await resume(chaos)
    await redrive_all(chaos, sender.organization)
    drained = await chaos.drained(within=120)
    await redrive_all(chaos, sender.organization)
    await chaos.drained(within=120)
    await all_applied(chaos, sender)
    return {
        "failing events": len(sender.ledger),
        "parked when it stopped": parked,
        "limit": _LIMIT,
        "drained after seconds": round(drained, 1),
    }


async def _failing(sender: Sender, patients: int, name: str) -> None:
    def make(patient: str, number: int) -> Entry | None:
        return sender.entry(patient, number, "chaos", fail="permanent") if number == 1 else None

    await sender.send([f"{name}{n}" for n in range(patients)], make, rate=100, batch=10)


async def _failures(chaos: Chaos) -> Mapping[str, Any]:
    row = await chaos.reader.processor["consumers"].find_one({"_id": "carebus-processor"})
    failures: Mapping[str, Any] = (row or {}).get("failures") or {"consecutive": 0}
    return failures


async def _kill_all(chaos: Chaos, *, healthy: bool = True) -> None:
    names = [one.name for one in chaos.system.status() if one.name.startswith("processor")]
    for name in names:
        chaos.processes.kill(name)
    if healthy:
        await asyncio.sleep(0.5)
        await chaos.processes.healthy(within=60)
