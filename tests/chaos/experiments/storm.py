"""Experiment 1: everything at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Any

from ..harness import Chaos, expect
from ..ledger import Entry
from ..operations import redrive_all
from ..sender import Make, Sender
from .parking import all_applied

__all__ = ["storm"]

_VICTIMS = ("processor", "ingest", "kafka", "store", "processor-2", "claims", "ingest-2", "processor-3", "gateway")
_RATE = 700.0


async def storm(chaos: Chaos) -> Mapping[str, Any]:
    """Events of 5,000 patients, 10 % duplicates, 1 % invalid, 1 % that fail, and kills of everything: none lost,
    none twice, none out of order; drained within 120 s of the last restart. Then all dead letters are redriven."""
    patients, events, kills = chaos.scaled(5000, 200), chaos.scaled(100_000, 2000), chaos.scaled(20, 9)
    sender = chaos.sender()
    began = monotonic()
    sending = asyncio.create_task(
        sender.send(
            [f"p{n}" for n in range(patients)],
            mixed(sender, each=events // patients),
            rate=_RATE,
            duplicates=0.1,
            give_up=0.02,
        )
    )
    try:
        await _kill_meanwhile(chaos, sender, sending, events, kills)
        await sending
    finally:
        sending.cancel()
    sent_in = monotonic() - began
    await chaos.processes.healthy(within=120)
    chaos.say(f"{len(sender.ledger):,} events sent in {sent_in:.0f} s; the last restart is over")
    drained = await chaos.drained(within=120)
    found = await chaos.verdict(sender)
    dead = len(found.dead_letters)
    chaos.fix(sender.organization)
    redriven = await redrive_all(chaos, sender.organization)
    await chaos.drained(within=120)
    found = await all_applied(chaos, sender)
    return {
        "events": len(sender.ledger),
        "accepted": sender.ledger.accepted(),
        "kills": dict(chaos.processes.kills),
        "dead letters": dead,
        "redriven": redriven,
        "events per second": round(len(sender.ledger) / sent_in),
        "drained after seconds": round(drained, 1),
        "repeated on the topic": sum(len(ids) - len(set(ids)) for ids in found.emitted.values()),
    }


async def _kill_meanwhile(chaos: Chaos, sender: Sender, sending: asyncio.Task[None], events: int, kills: int) -> None:
    """Kill -9 spread evenly over the events, each kind of process in turn."""
    victims = list(_VICTIMS)
    done = 0
    while not sending.done():
        if done < kills and len(sender.ledger) >= (done + 1) * events / (kills + 1):
            if not victims:
                victims = chaos.rng.sample(_VICTIMS, len(_VICTIMS))
            if chaos.processes.kill(victims.pop(0)):
                done += 1
        await asyncio.wait([sending], timeout=0.05)
    expect(done == kills, f"{done} of {kills} processes were killed")


def mixed(sender: Sender, *, each: int, failing: float = 0.01, invalid: float = 0.01) -> Make:
    """`each` events a patient: of ordinary types, some invalid, some failing (two thirds of these only at first)."""

    def make(patient: str, number: int) -> Entry | None:
        if number > each:
            return None
        chance = sender.rng.random()
        if chance < invalid:
            return sender.invalid(patient, number)
        if chance < invalid + failing:
            if sender.rng.random() < 2 / 3:
                return sender.entry(patient, number, "chaos", fail="transient", times=sender.rng.choice([1, 2]))
            return sender.entry(patient, number, "chaos", fail="permanent")
        return sender.entry(patient, number)

    return make
