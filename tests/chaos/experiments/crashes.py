"""Experiment 3: the process dies just before or just after each step that matters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from carebus_common.failpoints import NAMES

from ..harness import Chaos, until
from ..ledger import Entry
from ..operations import discard_all, redrive_all
from ..sender import Make, Sender
from .parking import all_applied

__all__ = ["at_every_step", "before_transactions"]

# Claims emits nothing, and nothing of it fails.
_OF_CLAIMS = frozenset({"before-transaction", "after-transaction", "before-offset-commit", "after-offset-commit"})


async def at_every_step(chaos: Chaos) -> Mapping[str, Any]:
    """Processors die before and after the transaction, the emit, the DLQ acknowledgement, the offset commit and the
    unparking, each so many times, and claims with them where it has such a step: 000."""
    sender = chaos.sender()
    redriving = asyncio.create_task(_redrive_again_and_again(chaos, sender))
    try:
        figures = await _die(chaos, sender, NAMES, chaos.scaled(10, 1))
    finally:
        redriving.cancel()
        await asyncio.gather(redriving, return_exceptions=True)
    await chaos.drained(within=120)
    await chaos.verdict(sender)
    chaos.fix(sender.organization)
    redriven = await redrive_all(chaos, sender.organization)
    await chaos.drained(within=120)
    # Some were redriven too often while nothing was solved.
    discarded = await discard_all(chaos, sender.organization)
    drained = await chaos.drained(within=120)
    await all_applied(chaos, sender)
    return {
        **figures,
        "redriven at last": redriven,
        "discarded at last": discarded,
        "drained after seconds": round(drained, 1),
    }


async def before_transactions(chaos: Chaos) -> Mapping[str, Any]:
    """Only that: what is smallest to tell the order of transaction, emit and offset commit."""
    sender = chaos.sender()
    figures = await _die(chaos, sender, ("before-transaction",), 4)
    await chaos.drained(within=60)
    await chaos.verdict(sender)
    return figures


async def _die(chaos: Chaos, sender: Sender, names: Sequence[str], times: int) -> dict[str, Any]:
    """Have processors die at each of these places so many times, under load."""
    before = Counter(chaos.struck())
    stop = asyncio.Event()
    sending = asyncio.create_task(
        sender.send([f"p{n}" for n in range(20_000)], _load(sender), rate=120, batch=10, workers=8, stop=stop)
    )
    try:
        for number in range(1, times + 1):
            for name in names:
                await _die_at(chaos, name, before, number)
            chaos.say(f"struck {dict(Counter(chaos.struck()) - before)}, {len(sender.ledger):,} events sent")
    finally:
        stop.set()
        chaos.arm("processor", "")
        chaos.arm("claims", "")
        await asyncio.gather(sending, return_exceptions=True)
    return {"events": len(sender.ledger), "died": dict(Counter(chaos.struck()) - before)}


async def _die_at(chaos: Chaos, name: str, before: Counter[str], times: int) -> None:
    """Have processes die at their next pass, until so many have."""
    chaos.arm("processor", f"{name}=crash@n1")
    if name in _OF_CLAIMS:
        chaos.arm("claims", f"{name}=crash@n5")

    async def struck() -> bool:
        return (Counter(chaos.struck()) - before)[name] >= times

    await until(struck, within=90, what=f"a process dies at {name}, for the {times}. time")
    chaos.arm("claims", "")


def _load(sender: Sender) -> Make:
    """Some fail at first, some until they are redriven: in all fewer than stop the consumer."""

    def make(patient: str, number: int) -> Entry | None:
        chance = sender.rng.random()
        if number > 6:
            return None
        if chance < 0.02:
            return sender.entry(patient, number, "chaos", fail="transient", times=1)
        if chance < 0.03:
            return sender.entry(patient, number, "chaos", fail="permanent")
        return sender.entry(patient, number)

    return make


async def _redrive_again_and_again(chaos: Chaos, sender: Sender) -> None:
    """What fails again becomes another dead letter, until it is solved or the cap is reached."""
    while True:
        await asyncio.sleep(5)
        await redrive_all(chaos, sender.organization)
