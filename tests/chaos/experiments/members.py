"""Experiments 2 and 4: members of the consumer group that halt, come and go."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Mapping
from time import monotonic
from typing import Any

from ..harness import Chaos, expect, until
from .storm import mixed

__all__ = ["halted_member", "joining_and_leaving"]

_SESSION_TIMEOUT = 10.0
_IDLE_AT_MOST = 15.0


async def halted_member(chaos: Chaos) -> Mapping[str, Any]:
    """A processor halts just before it writes a transaction, for longer than its session; another one takes over;
    then it goes on. What it writes then is refused, and what the others did stands as it was."""
    halted = "processor-2"
    pid = chaos.processes.pid(halted)
    chaos.arm("processor", "before-transaction=stop@n5", pid=pid)
    sender = chaos.sender()
    stop = asyncio.Event()
    sending = asyncio.create_task(
        sender.send([f"p{n}" for n in range(60)], mixed(sender, each=10**9, failing=0), rate=150, batch=10, stop=stop)
    )
    try:

        async def has_stopped() -> bool:
            return "failpoint before-transaction: stop" in chaos.log(halted)

        await until(has_stopped, within=60, what="the processor halts before a transaction")
        chaos.say(f"{halted} has halted before a transaction")
        accepted = {entry.event_id for entry in sender.ledger if entry.accepted}
        behind = await _unapplied(chaos, sender.organization, accepted)
        await asyncio.sleep(_SESSION_TIMEOUT + 5)

        async def taken_over() -> bool:
            return not await _unapplied(chaos, sender.organization, behind)

        await until(taken_over, within=30, what="another one has taken over what the halted one had")
        before = await _rows(chaos, sender.organization)
        chaos.processes.resume(pid)
        chaos.say(f"{halted} goes on; {len(behind)} events that it was at were applied by others")
        await asyncio.sleep(3)
    finally:
        chaos.arm("processor", "", pid=pid)
        chaos.processes.resume(pid)
        stop.set()
        await sending
    drained = await chaos.drained(within=60)
    await chaos.verdict(sender)
    after = await _rows(chaos, sender.organization)
    changed = [event_id for event_id, row in before.items() if after.get(event_id) != row]
    expect(not changed, f"{len(changed)} rows were changed by the process that had lost its partitions")
    expect(chaos.processes.pid(halted) == pid, "the halted process goes on and is not restarted")
    return {"events": len(sender.ledger), "waited for the take-over": len(behind), "drained after seconds": drained}


async def _unapplied(chaos: Chaos, organization: str, event_ids: set[str]) -> set[str]:
    return event_ids - set(await _rows(chaos, organization))


async def _rows(chaos: Chaos, organization: str) -> dict[str, Any]:
    rows = chaos.reader.processor["processed_events"].find(
        {"organizationId": organization}, {"eventId": 1, "source": 1, "processedAt": 1}
    )
    return {row["eventId"]: (row["source"], row["processedAt"]) async for row in rows}


async def joining_and_leaving(chaos: Chaos) -> Mapping[str, Any]:
    """A member joins or leaves every 3 s, 40 times: no partition with waiting events stands still for over 15 s."""
    times = chaos.scaled(40, 8)
    sender = chaos.sender()
    stop = asyncio.Event()
    sending = asyncio.create_task(
        sender.send([f"p{n}" for n in range(120)], mixed(sender, each=10**9, failing=0), rate=200, batch=20, stop=stop)
    )
    members = {name: asyncio.create_task(asyncio.sleep(0)) for name in ("processor", "processor-2", "processor-3")}
    there, gone = deque(members), deque[str]()
    began = monotonic()
    try:
        for n in range(times):
            # One leaves, another one leaves, the first one joins, and so on: one or two are away, never all.
            join = n % 2 == 0 and n > 0
            name = gone.popleft() if join else there.popleft()
            (there if join else gone).append(name)
            chaos.say(f"{name} {'joins' if join else 'leaves'} ({n + 1} of {times})")
            members[name] = asyncio.create_task(_move(chaos, name, members[name], join=join))
            await asyncio.sleep(max(0.0, began + 3 * (n + 1) - monotonic()))
    finally:
        stop.set()
        await asyncio.gather(*members.values())
        await sending
        for name in gone:
            await chaos.system.supervisor.start_again(name)
    await chaos.drained(within=60)
    await chaos.verdict(sender)
    idle = await longest_idle(chaos, sender.organization)
    expect(idle <= _IDLE_AT_MOST, f"a partition stood still for {idle:.1f} s")
    return {"events": len(sender.ledger), "joins and leaves": times, "longest idle seconds": round(idle, 1)}


async def _move(chaos: Chaos, name: str, before: asyncio.Task[None], *, join: bool) -> None:
    """Have it join or leave, once its last move is over."""
    await before
    if join:
        await chaos.system.supervisor.start_again(name)
    else:
        await chaos.system.supervisor.stop(name)


async def longest_idle(chaos: Chaos, organization: str) -> float:
    """The longest time in which a partition had an event waiting and none was processed."""
    partitions: dict[int, list[tuple[Any, Any]]] = defaultdict(list)
    fields = {"source": 1, "processedAt": 1, "receivedAt": 1}
    async for row in chaos.reader.processor["processed_events"].find({"organizationId": organization}, fields):
        partitions[row["source"]["partition"]].append((row["processedAt"], row["receivedAt"]))
    longest = 0.0
    for times in partitions.values():
        times.sort()
        previous = None
        for processed, received in times:
            since = received if previous is None else max(previous, received)
            longest = max(longest, (processed - since).total_seconds())
            previous = processed
    return longest
