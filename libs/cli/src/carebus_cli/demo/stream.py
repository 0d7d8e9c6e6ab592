"""Posts the sample day: many patients at once, each patient's events one after another."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from carebus_cli.client import Receipt, Refused, Unreachable
from carebus_cli.demo.ledger import Ledger
from carebus_cli.demo.sample_day import SampleEvent

__all__ = ["Sender", "stream"]

_SENDERS: Final = 24


class Sender(Protocol):
    """What streaming needs of a `GatewayClient`."""

    async def send(self, event: bytes) -> Receipt: ...


async def stream(sender: Sender, day: Sequence[SampleEvent], ledger: Ledger, *, rate: float) -> None:
    """Post all events at up to `rate` a second, noting each in `ledger`.

    A patient's next event is posted only after the one before was answered. Raises Unreachable if the gateway
    is gone for good; an event that is refused for good is noted as failed, and the day goes on.
    """
    began = asyncio.get_running_loop().time()
    queues: list[list[tuple[float, SampleEvent]]] = [[] for _ in range(_SENDERS)]
    for index, event in enumerate(day):
        queues[zlib.crc32(event.patient_id.encode()) % _SENDERS].append((began + index / rate, event))
    try:
        async with asyncio.TaskGroup() as group:
            for queue in queues:
                group.create_task(_post(sender, queue, ledger))
    except* Unreachable as failures:
        raise failures.exceptions[0] from None


async def _post(sender: Sender, queue: list[tuple[float, SampleEvent]], ledger: Ledger) -> None:
    loop = asyncio.get_running_loop()
    for due, event in queue:
        if (early := due - loop.time()) > 0:
            await asyncio.sleep(early)
        posted_at = time.time()
        try:
            receipt = await sender.send(msgspec.json.encode(event.body))
        except Refused as refused:
            ledger.fail(f"{refused.status} {refused.code}")
        else:
            ledger.note(event, receipt, posted_at, time.time())
