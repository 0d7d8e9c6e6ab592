"""The rate limit on a real Redis, as several processes share it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from carebus_common import metrics
from carebus_common.errors import RateLimited
from carebus_common.redis_aside import RedisAside, connect
from carebus_ingest.rate_limit import RateLimiter
from carebus_local.parts import Site, StackUrls, start_valkey
from carebus_local.ports import Ports
from carebus_local.state import lock
from carebus_local.supervisor import Supervisor
from carebus_local.testing import random_name

WITHIN = timedelta(seconds=2)


@asynccontextmanager
async def limiting(
    redis_url: str, events: int = 1000, size: int = 10**9, *, within: timedelta = WITHIN
) -> AsyncIterator[RateLimiter]:
    redis = RedisAside(connect(redis_url, within))
    limiter = RateLimiter(redis, events_per_minute=events, bytes_per_minute=size)
    try:
        yield limiter
    finally:
        await limiter.close()
        await redis.close()


@pytest.fixture
def organization() -> str:
    return random_name("org")


async def accepted(limiter: RateLimiter, organization: str, events: int = 1, size: int = 400) -> int:
    try:
        return (await limiter.take(organization, events, size)).events
    except RateLimited:
        return 0


async def test_the_last_event_of_the_minute_passes_and_the_next_one_does_not(
    stack: StackUrls, organization: str
) -> None:
    async with limiting(stack.redis_url) as limiter:
        for _ in range(1000):
            assert (await limiter.take(organization, 1, 400)).refusal is None
        with pytest.raises(RateLimited) as refused:
            await limiter.take(organization, 1, 400)
        headers = refused.value.headers
        assert 50 <= int(headers["Retry-After"]) <= 60
        assert headers["RateLimit-Limit"] == "1000"
        assert headers["RateLimit-Remaining"] == "0"
        assert headers["RateLimit-Reset"] == headers["Retry-After"]
        assert headers["RateLimit-Policy"] == '1000;w=60;comment="events", 1000000000;w=60;comment="bytes"'
        assert await accepted(limiter, random_name("another")) == 1


async def test_several_processes_share_one_limit_to_the_last_event(stack: StackUrls, organization: str) -> None:
    """One after another, each to any of three: what one has leased must not be missing where the next one comes to."""
    async with (
        limiting(stack.redis_url) as first,
        limiting(stack.redis_url) as second,
        limiting(stack.redis_url) as third,
    ):
        rng = random.Random(11)
        for number in range(1000):
            limiter = rng.choice((first, second, third))
            assert await accepted(limiter, organization) == 1, f"event {number + 1} was refused"
        for limiter in (first, second, third):
            assert await accepted(limiter, organization) == 0


async def test_what_another_process_has_leased_and_not_spent_is_waited_for(stack: StackUrls, organization: str) -> None:
    async with limiting(stack.redis_url, 640) as first, limiting(stack.redis_url, 640) as second:
        assert await accepted(first, organization) == 1
        assert first._allowances[organization].events == 9
        grant = await second.take(organization, 639, 400)
        assert (grant.events, grant.refusal) == (639, None)
        assert await accepted(first, organization) == 0


async def test_many_at_once_in_several_processes_get_the_limit_exactly(stack: StackUrls, organization: str) -> None:
    async with limiting(stack.redis_url, 500) as first, limiting(stack.redis_url, 500) as second:
        taken = await asyncio.gather(*(accepted(one, organization) for _ in range(400) for one in (first, second)))
        assert sum(taken) == 500


async def test_bytes_are_limited_too(stack: StackUrls, organization: str) -> None:
    async with limiting(stack.redis_url, 10**6, 1_000_000) as limiter:
        taken = [await accepted(limiter, organization, size=30_000) for _ in range(40)]
        assert taken == [1] * 33 + [0] * 7
        assert await accepted(limiter, organization, size=10_000) == 1
        with pytest.raises(RateLimited) as refused:
            await limiter.take(organization, 1, 1)
        assert refused.value.headers["RateLimit-Limit"] == "1000000"
        assert refused.value.details == [{"path": "bytes", "rule": "at most 1000000 a minute"}]


async def test_a_batch_gets_what_is_left_and_a_refusal_for_the_rest(stack: StackUrls, organization: str) -> None:
    async with limiting(stack.redis_url, 100) as limiter:
        grant = await limiter.take(organization, 70, 7000)
        assert (grant.events, grant.refusal) == (70, None)
        grant = await limiter.take(organization, 70, 7000)
        assert grant.events == 30
        assert isinstance(grant.refusal, RateLimited)
        assert await accepted(limiter, organization, 70) == 0


async def test_a_window_begins_with_its_first_event_and_another_one_after_it(
    stack: StackUrls, organization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carebus_ingest.rate_limit.WINDOW", timedelta(seconds=1))
    async with limiting(stack.redis_url, 3) as limiter:
        assert [await accepted(limiter, organization) for _ in range(4)] == [1, 1, 1, 0]
        with pytest.raises(RateLimited) as refused:
            await limiter.take(organization, 1, 1)
        assert refused.value.headers["Retry-After"] == "1"
        async with asyncio.timeout(5):
            while not await accepted(limiter, organization):
                await asyncio.sleep(0.02)
        assert [await accepted(limiter, organization) for _ in range(3)] == [1, 1, 0]


async def test_what_is_refused_asks_redis_no_more(stack: StackUrls, organization: str) -> None:
    async with limiting(stack.redis_url, 1) as limiter:
        assert await accepted(limiter, organization) == 1
        assert await accepted(limiter, organization) == 0
        commands = (await limiter._redis.client.info("stats"))["total_commands_processed"]
        assert sum([await accepted(limiter, organization) for _ in range(2000)]) == 0
        # The script runs a handful of commands a call, and other tests are about.
        assert (await limiter._redis.client.info("stats"))["total_commands_processed"] - commands < 2000


async def test_a_process_that_stops_gives_its_lease_back(stack: StackUrls, organization: str) -> None:
    async with limiting(stack.redis_url, 640) as first:
        assert await accepted(first, organization) == 1
    async with limiting(stack.redis_url, 640) as second:
        assert sum([await accepted(second, organization) for _ in range(700)]) == 639


async def test_a_lease_saves_most_round_trips(stack: StackUrls, organization: str) -> None:
    async with limiting(stack.redis_url, 1_000_000) as limiter:
        calls = 0
        run = limiter._run

        async def counted(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            return await run(*arguments)  # type: ignore[arg-type]

        limiter._run = counted  # type: ignore[method-assign, assignment]
        for _ in range(5000):
            assert await accepted(limiter, organization) == 1
        assert calls < 50


@dataclass
class Valkey:
    """A Redis of our own, to be stopped."""

    url: str
    supervisor: Supervisor


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def valkey() -> AsyncIterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="carebus-limits-") as scratch, lock(Path(scratch)):
        ports = Ports(Path(scratch))
        supervisor = Supervisor(Path(scratch))
        try:
            site = Site(Path(scratch), ports, supervisor, {}, usual_ports=False)
            await start_valkey(site)
            yield Valkey(f"redis://127.0.0.1:{site.port('valkey')}/0", supervisor)
        finally:
            await supervisor.stop_all()
            ports.release()


def failed_open() -> float:
    return float(metrics.RATE_LIMIT_FAILED_OPEN._value.get())


async def test_without_redis_everybody_may_send_and_a_metric_says_so(organization: str) -> None:
    async with limiting("redis://127.0.0.1:1/0", 1) as limiter:
        before = failed_open()
        assert [await accepted(limiter, organization) for _ in range(10)] == [1] * 10
        assert failed_open() == before + 10


async def test_a_redis_that_hangs_costs_one_short_wait_and_is_used_again_when_it_answers(
    valkey: Valkey, organization: str
) -> None:
    within = timedelta(milliseconds=200)
    async with limiting(valkey.url, 5, within=within) as limiter:
        assert await accepted(limiter, organization) == 1
        os.kill(valkey.supervisor.pid("valkey"), signal.SIGSTOP)
        try:
            began = time.monotonic()
            taken = await asyncio.gather(*(accepted(limiter, organization) for _ in range(50)))
            assert sum(taken) == 50
            assert time.monotonic() - began < 1
            began = time.monotonic()
            for _ in range(200):
                assert await accepted(limiter, organization) == 1
            assert time.monotonic() - began < 0.1
        finally:
            os.kill(valkey.supervisor.pid("valkey"), signal.SIGCONT)
        async with asyncio.timeout(5):
            while await accepted(limiter, organization):
                await asyncio.sleep(0.02)


async def test_a_restarted_redis_is_found_again(valkey: Valkey, organization: str) -> None:
    async with limiting(valkey.url, 3, within=timedelta(milliseconds=500)) as limiter:
        assert await accepted(limiter, organization) == 1
        await valkey.supervisor.stop("valkey")
        assert sum([await accepted(limiter, organization) for _ in range(10)]) == 10
        await valkey.supervisor.start_again("valkey")
        async with asyncio.timeout(5):
            while await accepted(limiter, organization):
                await asyncio.sleep(0.02)
