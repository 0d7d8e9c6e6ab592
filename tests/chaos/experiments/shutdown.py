"""Experiment 12: every service is stopped while events flow."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Any

from ..harness import Chaos, expect
from ..sender import Sender

__all__ = ["sigterm_under_load"]

_RATE = 500
_EXIT_WITHIN = 10.0


async def sigterm_under_load(chaos: Chaos) -> Mapping[str, Any]:
    """SIGTERM of each service under 500 events/s: exit within 10 s, and no request that was taken fails.

    A connection refused is no request: where there is one replica, a balancer would go elsewhere. With two (ingest)
    not even that may happen.
    """
    took: dict[str, float] = {}
    refused: dict[str, int] = {}
    sender = chaos.sender()
    for name in ("ingest", "processor", "claims", "gateway"):
        chaos.session.statuses.clear()
        chaos.session.failures.clear()
        stop = asyncio.Event()
        sending = asyncio.create_task(_events(sender, name, stop))
        try:
            await asyncio.sleep(2)
            began = monotonic()
            await chaos.system.supervisor.stop(name)
            took[name] = round(monotonic() - began, 1)
            await asyncio.sleep(1)
            await chaos.system.supervisor.start_again(name)
            await asyncio.sleep(1)
        finally:
            stop.set()
            await sending
        chaos.say(f"{name} ended in {took[name]} s; answers {dict(chaos.session.statuses)}")
        failures = dict(chaos.session.failures)
        refused[name] = failures.pop("ConnectError", 0)
        expect(took[name] < _EXIT_WITHIN, f"{name} took {took[name]} s to end")
        expect(not failures, f"requests failed while {name} ended: {failures}")
        expect(set(chaos.session.statuses) == {"202"}, f"answers while {name} ended: {chaos.session.statuses}")
        expect(name == "gateway" or not refused[name], f"{refused[name]} connections refused while {name} ended")
    await chaos.drained(within=60)
    await chaos.verdict(sender)
    return {"events": len(sender.ledger), "seconds to end": took, "connections refused": refused}


async def _events(sender: Sender, name: str, stop: asyncio.Event) -> None:
    """Half through the gateway, half straight to ingest."""
    patients = [f"{name}-{n}" for n in range(200)]
    await sender.send(patients, sender.entry, rate=_RATE, workers=8, batch=10, stop=stop)
