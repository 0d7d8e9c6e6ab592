"""Experiments 9 to 11: the database away, the broker away, a producer that breaks."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from ..harness import Chaos, expect, until
from ..sender import Sender
from .storm import mixed

__all__ = ["broken_producer", "broker_away", "store_away"]

_ANSWER_WITHIN = 2.0
_NORMAL_WITHIN = 10.0
_MEMORY_MAY_GROW = 150 * 1024 * 1024
# Kafka's error codes: OUT_OF_ORDER_SEQUENCE_NUMBER, INVALID_PRODUCER_EPOCH, UNKNOWN_PRODUCER_ID.
_FATAL = (45, 47, 59)


@asynccontextmanager
async def traffic(sender: Sender, *, rate: float = 150, patients: int = 60) -> AsyncIterator[None]:
    """Events all the while; at the end the last requests are awaited."""
    stop = asyncio.Event()
    make = mixed(sender, each=10**9, failing=0)
    names = [f"p{n}" for n in range(patients)]
    sending = asyncio.create_task(sender.send(names, make, rate=rate, batch=10, duplicates=0.05, stop=stop))
    try:
        yield
    finally:
        stop.set()
        await sending


async def store_away(chaos: Chaos) -> Mapping[str, Any]:
    """The database away for minutes, in each way it can be: no dead letter, ingest goes on with 202."""
    assert chaos.store_proxy is not None
    seconds = chaos.scaled(60, 6)
    sender = chaos.sender()
    ways: dict[str, AbstractAsyncContextManager[None]] = {
        "stopped": chaos.processes.away("store"),
        "halted": chaos.processes.halted("store"),
        "blackhole": chaos.store_proxy.faulty("blackhole"),
        "half-open": chaos.store_proxy.faulty("half-open"),
    }
    accepted: dict[str, int] = {}
    async with traffic(sender):
        for name, away in ways.items():
            chaos.say(f"the store is away ({name}) for {seconds} s")
            async with away:
                await asyncio.sleep(1)
                before, statuses = sender.ledger.accepted(), chaos.session.statuses.copy()
                await asyncio.sleep(seconds)
                accepted[name] = sender.ledger.accepted() - before
                refused = {k: v for k, v in (chaos.session.statuses - statuses).items() if k not in ("202", "207")}
            expect(accepted[name] > 50 * seconds, f"only {accepted[name]} accepted while the store was away ({name})")
            expect(not set(refused) - {"400"}, f"answers while the store was away ({name}): {refused}")
            await asyncio.sleep(3)
    drained = await chaos.drained(within=60 + seconds * len(ways))
    found = await chaos.verdict(sender)
    expect(not found.dead_letters, f"{len(found.dead_letters)} dead letters, though only the store was away")
    return {"accepted while away": accepted, "seconds each": seconds, "drained after seconds": round(drained, 1)}


async def broker_away(chaos: Chaos) -> Mapping[str, Any]:
    """The broker away for a minute, in each way it can be: 503 with Retry-After within 2 s and never 202, memory
    bounded, normal again within 10 s, no process restarted."""
    assert chaos.kafka_proxy is not None
    seconds = chaos.scaled(60, 5)
    services = [one.name for one in chaos.system.status() if one.kind == "service"]
    pids = {name: chaos.processes.pid(name) for name in services}
    memory = {name: _memory(pid) for name, pid in pids.items()}
    sender, prober = chaos.sender(), chaos.sender()
    ways: dict[str, Callable[[], AbstractAsyncContextManager[None]]] = {
        "halted": lambda: chaos.processes.halted("kafka"),
        "blackhole": lambda: chaos.kafka_proxy.faulty("blackhole"),  # type: ignore[union-attr]
        "half-open": lambda: chaos.kafka_proxy.faulty("half-open"),  # type: ignore[union-attr]
        "refuse": lambda: chaos.kafka_proxy.faulty("refuse"),  # type: ignore[union-attr]
        "stopped": lambda: chaos.processes.away("kafka"),
    }
    slowest: dict[str, float] = {}
    recovered: dict[str, float] = {}
    grown: dict[str, int] = {}
    for name, away in ways.items():
        chaos.say(f"the broker is away ({name}) for {seconds} s")
        async with traffic(sender, rate=100):
            await asyncio.sleep(1)
            async with away():
                slowest[name] = await _refused_in_time(chaos, prober, seconds, name)
                for service, pid in pids.items():
                    grown[service] = max(grown.get(service, 0), _memory(pid) - memory[service])
            recovered[name] = await _accepts_again(chaos, prober)
            await asyncio.sleep(2)
    drained = await chaos.drained(within=90)
    await chaos.verdict(sender)
    # A probe is sent once, to be refused.
    await chaos.verdict(prober, minimum_accepted=0.0)
    fat = {service: f"{size >> 20} MiB" for service, size in grown.items() if size > _MEMORY_MAY_GROW}
    expect(not fat, f"memory grew: {fat}")
    restarted = [name for name in services if chaos.processes.pid(name) != pids[name]]
    expect(not restarted, f"restarted: {restarted}")
    return {
        "slowest answer seconds": {name: round(value, 2) for name, value in slowest.items()},
        "normal again after seconds": {name: round(value, 1) for name, value in recovered.items()},
        "drained after seconds": round(drained, 1),
        "memory grown MiB": {name: size >> 20 for name, size in grown.items()},
    }


async def _refused_in_time(chaos: Chaos, sender: Sender, seconds: float, way: str) -> float:
    """Ask all the while, by every way in; the slowest answer."""
    token = {"Authorization": f"Bearer {chaos.system.token(sender.organization, ['event-sender'])}"}
    slowest, until = 0.0, monotonic() + seconds
    for n in itertools.count():
        entry = sender.entry(f"probe-{way}-{n % 7}", n + 1)
        sender.ledger.add(entry)
        began = monotonic()
        answer = await chaos.session.http.post(f"{sender.url(n)}/events", json=entry.document, headers=token)
        took = monotonic() - began
        entry.answers.append(None if answer.status_code >= 500 else answer.status_code)
        expect(answer.status_code == 503, f"{answer.status_code} while the broker was away ({way})")
        expect(int(answer.headers.get("Retry-After", 0)) >= 1, f"no Retry-After while the broker was away ({way})")
        expect(took <= _ANSWER_WITHIN, f"an answer took {took:.2f} s while the broker was away ({way})")
        slowest = max(slowest, took)
        if monotonic() > until:
            return slowest
        await asyncio.sleep(0.2)
    raise AssertionError("unreachable")


async def _accepts_again(chaos: Chaos, sender: Sender) -> float:
    """How long it takes until an event is accepted by each way in."""
    began = monotonic()

    def attempt(n: int) -> Callable[[], Awaitable[bool]]:
        async def accepted() -> bool:
            entry = sender.entry(f"back-{n}", len(sender.ledger))
            sender.ledger.add(entry)
            try:
                async with asyncio.timeout(_ANSWER_WITHIN + 1):
                    return await sender.post([entry], url=sender.url(n)) == [202]
            except TimeoutError:
                entry.answers.append(None)
                return False

        return accepted

    for n in range(4):
        await until(attempt(n), within=_NORMAL_WITHIN, what="an event is accepted once the broker is back")
    return monotonic() - began


async def broken_producer(chaos: Chaos) -> Mapping[str, Any]:
    """The broker stores batches and answers with an error that ends an idempotent producer (aiokafka issue #1017):
    another producer is built, in ingest and in the processor, and nothing is lost, doubled or reordered."""
    assert chaos.kafka_proxy is not None
    proxy = chaos.kafka_proxy
    times = chaos.scaled(30, 6)
    sender = chaos.sender()
    pids = {one.name: one.pid for one in chaos.system.status()}
    async with traffic(sender, rate=200):
        for n in range(times):
            await asyncio.sleep(1)
            proxy.fail_produces(1 + n % 3, _FATAL[n % len(_FATAL)])
        await asyncio.sleep(1)
    failed = proxy.failed_produces
    drained = await chaos.drained(within=60)
    await chaos.verdict(sender)
    rebuilt = {
        service: sum(chaos.log(name).count("producer-given-up") for name in pids if name.partition("-")[0] == service)
        for service in ("ingest", "processor")
    }
    expect(failed >= times, f"only {failed} answers were spoilt")
    expect(all(rebuilt.values()), f"producers given up: {rebuilt}; both services should have met the error")
    expect({one.name: one.pid for one in chaos.system.status()} == pids, "a process was restarted")
    return {"spoilt answers": failed, "producers given up": rebuilt, "drained after seconds": round(drained, 1)}


def _memory(pid: int) -> int:
    """Resident bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096
