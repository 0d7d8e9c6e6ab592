"""The cache while its Valkey is away, hangs, is killed and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest_asyncio

from carebus_common import metrics
from carebus_local.parts import Site, start_valkey
from carebus_local.ports import Ports
from carebus_local.state import lock
from carebus_local.supervisor import Supervisor
from carebus_local.testing import eventually, random_name

from ..caching import TEXT, Loads, caching, reads


@dataclass
class Valkey:
    """A Redis of our own, to be stopped."""

    url: str
    supervisor: Supervisor


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def valkey() -> AsyncIterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="carebus-cache-") as scratch, lock(Path(scratch)):
        ports = Ports(Path(scratch))
        supervisor = Supervisor(Path(scratch))
        try:
            site = Site(Path(scratch), ports, supervisor, {}, usual_ports=False)
            await start_valkey(site)
            yield Valkey(site.urls().redis_url, supervisor)
        finally:
            await supervisor.stop_all()
            ports.release()


async def test_without_redis_everything_comes_from_the_store(org: str) -> None:
    loads = Loads()
    away = reads("claim", "away")
    async with caching("redis://127.0.0.1:1/0") as cache:
        for _ in range(20):
            assert await cache.claim(org, "claim", TEXT, loads) == "as it was"
            assert await cache.listing(org, "query", TEXT, loads) == "as it was"
            async with cache.writing(org, ["claim"]):
                pass
        assert loads.count == 40
        assert cache.away
    assert reads("claim", "away") == away + 20


async def test_a_redis_that_hangs_costs_one_short_wait(valkey: Valkey, org: str) -> None:
    loads = Loads()
    async with caching(valkey.url, within=timedelta(milliseconds=50)) as cache:
        await cache.claim(org, "claim", TEXT, loads)
        os.kill(valkey.supervisor.pid("valkey"), signal.SIGSTOP)
        try:
            began = time.monotonic()
            await asyncio.gather(*(cache.claim(org, f"claim-{n}", TEXT, loads) for n in range(50)))
            assert time.monotonic() - began < 2
            began = time.monotonic()
            for n in range(200):
                await cache.claim(org, f"claim-{n}", TEXT, loads)
            assert time.monotonic() - began < 0.2
        finally:
            os.kill(valkey.supervisor.pid("valkey"), signal.SIGCONT)
        await eventually(lambda: not cache.away)
        before = loads.count
        await cache.claim(org, "claim", TEXT, loads)
        assert loads.count == before, "it is used again"


async def test_what_was_written_while_redis_was_killed_is_not_read_as_it_was_when_it_is_back(
    valkey: Valkey, org: str
) -> None:
    """Its file brings everything back that was kept. The writer and another process."""
    loads = Loads()
    within = timedelta(milliseconds=500)
    async with caching(valkey.url, within=within) as writer, caching(valkey.url, within=within) as reader:
        await reader.claim(org, "claim", TEXT, loads)
        await reader.claim(org, "untouched", TEXT, loads)
        await reader.listing(org, "query", TEXT, loads)
        await valkey.supervisor.stop("valkey")
        assert await reader.claim(org, "claim", TEXT, loads) == "as it was"
        async with writer.writing(org, ["claim"]):
            loads.value = "as it is"
        assert metrics.CACHE_PENDING._value.get() == 3
        await valkey.supervisor.start_again("valkey")
        seen: set[str | None] = set()
        until = time.monotonic() + 15
        while (writer.away or reader.away) and time.monotonic() < until:
            for by in (writer, reader):
                seen.add(await by.claim(org, "claim", TEXT, loads))
                seen.add(await by.listing(org, "query", TEXT, loads))
            await asyncio.sleep(0.01)
        assert seen == {"as it is"}
        assert not (writer.away or reader.away)
        assert metrics.CACHE_PENDING._value.get() == 0
        assert await reader.claim(org, "claim", TEXT, loads) == "as it is"
        loads.value = "never asked for"
        assert await reader.claim(org, "untouched", TEXT, loads) == "as it was", "and the rest is still there"


async def test_while_redis_is_killed_and_comes_back_every_read_and_write_works_and_none_is_stale(
    valkey: Valkey, org: str
) -> None:
    """Also what is written again and again while what was written before is being deleted."""
    loads = Loads()
    async with caching(valkey.url, within=timedelta(milliseconds=500)) as cache:
        await cache.claim(org, "claim", TEXT, loads)
        os.kill(valkey.supervisor.pid("valkey"), signal.SIGKILL)
        was_away, hits = False, reads("claim", "hit")
        until = time.monotonic() + 20
        while time.monotonic() < until and not (was_away and not cache.away and reads("claim", "hit") > hits):
            async with cache.writing(org, ["claim"]):
                loads.value = random_name("change")
            for _ in range(3):
                assert await cache.claim(org, "claim", TEXT, loads) == loads.value
            was_away |= cache.away
            await asyncio.sleep(0.01)
        assert was_away, "or else nothing was tested"
        assert not cache.away
        assert reads("claim", "hit") > hits, "it is used again"
