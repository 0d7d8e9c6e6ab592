"""Experiment 3: the process dies just before or just after each step that matters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from time import monotonic
from typing import Any

from carebus_common.failpoints import NAMES

from ..harness import Chaos, Failed, expect
from ..ledger import Entry
from ..operations import redrive_all
from ..sender import Make, Sender
from .parking import all_applied

__all__ = ["at_every_step"]

# Few passes an event: a patient is parked or goes on, a dead letter is acknowledged.
_RARE = frozenset({"before-dlq-ack", "after-dlq-ack", "before-unpark", "after-unpark"})
_GIVE_UP_AFTER = 240


async def at_every_step(chaos: Chaos) -> Mapping[str, Any]:
    """Processor and claims die before and after the transaction, the emit, the DLQ acknowledgement, the offset commit
    and the unparking, each so many times, under load with failures and redrives: 000."""
    times = chaos.scaled(20, 2)
    before = Counter(chaos.struck())
    sender = chaos.sender()
    stop = asyncio.Event()
    sending = asyncio.create_task(
        sender.send([f"p{n}" for n in range(20_000)], _load(sender), rate=120, batch=10, workers=8, stop=stop)
    )
    redriving = asyncio.create_task(_redrive_again_and_again(chaos, sender))
    began = told = monotonic()
    try:
        while missing := {name for name in NAMES if (Counter(chaos.struck()) - before)[name] < times}:
            rules = ",".join(f"{name}=crash@{0.3 if name in _RARE else 0.03}" for name in sorted(missing))
            chaos.arm("processor", rules)
            # Claims has nothing to emit and nothing that fails.
            chaos.arm("claims", "before-transaction=crash@0.01,after-transaction=crash@0.01")
            _restart_unarmed(chaos, missing)
            if monotonic() - told > 15:
                told = monotonic()
                chaos.say(f"struck {dict(Counter(chaos.struck()) - before)}, {len(sender.ledger):,} events sent")
            expect(monotonic() - began < _GIVE_UP_AFTER + 20 * times, f"never struck {times} times: {sorted(missing)}")
            await asyncio.sleep(1)
    finally:
        stop.set()
        redriving.cancel()
        chaos.arm("processor", "")
        chaos.arm("claims", "")
        for name in ("processor", "processor-2", "processor-3", "claims"):
            chaos.processes.kill(name)
        await asyncio.gather(sending, return_exceptions=True)
        await asyncio.gather(redriving, return_exceptions=True)
    struck = Counter(chaos.struck()) - before
    chaos.say(f"{len(sender.ledger):,} events sent, {struck.total()} processes died at {len(struck)} places")
    await chaos.processes.healthy(within=120)
    await chaos.drained(within=120)
    await chaos.verdict(sender)
    chaos.fix(sender.organization)
    redriven = await redrive_all(chaos, sender.organization)
    drained = await chaos.drained(within=120)
    await all_applied(chaos, sender)
    return {
        "events": len(sender.ledger),
        "died": dict(struck),
        "redriven": redriven,
        "drained after seconds": round(drained, 1),
    }


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
        try:
            await redrive_all(chaos, sender.organization)
        except (Failed, OSError):
            continue  # the processor that was asked has just died


def _restart_unarmed(chaos: Chaos, missing: set[str]) -> None:
    """A process that was started before any was armed has none."""
    if chaos.processes.kills.total() == 0 and missing:
        for name in ("processor-2", "processor-3", "claims"):
            chaos.processes.kill(name)
