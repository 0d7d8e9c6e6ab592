"""Follows one event after another from its post until the gateway serves it as processed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from carebus_cli.client import ApiError
from carebus_cli.demo.ledger import Accepted, Ledger

__all__ = ["Probe", "StatusReader"]

_EVERY: Final = 0.02
# Asking loads the machine that is measured: leave it alone between two probes.
_PAUSE: Final = 0.05


class StatusReader(Protocol):
    """What probing needs of a `GatewayClient`."""

    async def event(
        self, event_id: str, *, partition: int | None = None, offset: int | None = None
    ) -> dict[str, Any]: ...


@dataclass(slots=True)
class Probe:
    """`latencies` are the seconds from post to served; `first_at` the time (Unix seconds) of the first."""

    reader: StatusReader
    ledger: Ledger
    latencies: list[float] = field(default_factory=list)
    first_at: float | None = None

    async def run(self) -> None:
        """Probe the newest accepted event, again and again, until cancelled."""
        followed: Accepted | None = None
        while True:
            newest = self.ledger.newest
            if newest is not followed and newest is not None:
                followed = newest
                await self._follow(newest)
            await asyncio.sleep(_PAUSE if self.latencies else _EVERY)

    async def _follow(self, entry: Accepted) -> None:
        while True:
            if await self._is_processed(entry):
                break
            await asyncio.sleep(_EVERY)
        now = time.time()
        self.latencies.append(now - entry.posted_at)
        if self.first_at is None:
            self.first_at = now

    async def _is_processed(self, entry: Accepted) -> bool:
        receipt = entry.receipt
        try:
            found = await self.reader.event(entry.event.event_id, partition=receipt.partition, offset=receipt.offset)
        except ApiError:
            return False
        return bool(found["status"] == "processed")
