"""The cache on a real Valkey: what it keeps, what it forgets, and who waits for whom."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable
from functools import partial

import msgspec
import pytest
from redis.asyncio import Redis

from carebus_claims.cache import ClaimsCache, Codec
from carebus_local.testing import eventually, random_name

from ..caching import TEXT, Loads, key_of, reads


async def test_a_claim_is_read_from_the_store_once_and_kept_for_300_seconds(
    cache: ClaimsCache, other: ClaimsCache, redis: Redis, org: str
) -> None:
    loads = Loads()
    hits = reads("claim", "hit")
    for each in (cache, cache, other):
        assert await each.claim(org, "claim", TEXT, loads) == "as it was"
    assert loads.count == 1
    assert reads("claim", "hit") == hits + 2
    assert 295 < await redis.ttl(key_of(org)) <= 300


async def test_a_list_is_kept_for_60_seconds_for_the_same_query_only(
    cache: ClaimsCache, redis: Redis, org: str
) -> None:
    loads = Loads()
    for query in ("status=paid", "status=paid", "status=open"):
        await cache.listing(org, query, TEXT, loads)
    assert loads.count == 2
    kept = [key async for key in redis.scan_iter(f"claims:v1:{{{org}}}:list:*") if not key.endswith(b":lock")]
    assert len(kept) == 2
    assert all([55 < await redis.ttl(key) <= 60 for key in kept])


async def test_that_there_is_no_such_claim_is_not_kept(cache: ClaimsCache, org: str) -> None:
    loads = Loads(None)
    assert await cache.claim(org, "claim", TEXT, loads) is None
    loads.value = "made meanwhile"
    assert await cache.claim(org, "claim", TEXT, loads) == "made meanwhile"


async def test_a_write_forgets_its_claims_and_its_organization_s_lists_and_nothing_else(
    cache: ClaimsCache, other: ClaimsCache, redis: Redis, org: str
) -> None:
    another = random_name("org")
    loads = Loads()

    async def read() -> int:
        before = loads.count
        await other.claim(org, "claim", TEXT, loads)
        await other.claim(org, "untouched", TEXT, loads)
        await other.claim(another, "claim", TEXT, loads)
        await other.listing(org, "query", TEXT, loads)
        await other.listing(another, "query", TEXT, loads)
        return loads.count - before

    assert await read() == 5
    async with cache.writing(org, ["claim"]):
        pass
    assert await redis.exists(key_of(org)) == 0
    assert await read() == 2
    assert await read() == 0


@pytest.mark.parametrize("writer", ["the same process", "another process"])
@pytest.mark.parametrize("kind", ["claim", "list"])
async def test_who_read_before_a_write_and_stores_after_it_leaves_nothing_stale(
    cache: ClaimsCache, other: ClaimsCache, org: str, writer: str, kind: str
) -> None:
    loads = Loads()
    loads.goes_on.clear()

    def read(by: ClaimsCache) -> Awaitable[str | None]:
        return by.claim(org, "claim", TEXT, loads) if kind == "claim" else by.listing(org, "query", TEXT, loads)

    slow = asyncio.ensure_future(read(cache))
    await loads.read.wait()
    async with (cache if writer == "the same process" else other).writing(org, ["claim"]):
        loads.value = "as it is"
    loads.goes_on.set()
    assert await slow == "as it was"
    assert await read(cache) == "as it is"
    assert await read(other) == "as it is"


async def test_who_asks_after_a_write_does_not_join_a_read_that_began_before(cache: ClaimsCache, org: str) -> None:
    loads = Loads()
    loads.goes_on.clear()
    slow = asyncio.create_task(cache.claim(org, "claim", TEXT, loads))
    await loads.read.wait()
    async with cache.writing(org, ["claim"]):
        loads.value = "as it is"
    after = asyncio.create_task(cache.claim(org, "claim", TEXT, loads))
    await eventually(lambda: loads.count == 2)
    loads.goes_on.set()
    assert (await slow, await after) == ("as it was", "as it is")


async def test_a_writer_that_is_killed_between_its_commit_and_the_forgetting_leaves_nothing_stale(
    cache: ClaimsCache, other: ClaimsCache, redis: Redis, org: str
) -> None:
    loads = Loads()
    await cache.claim(org, "claim", TEXT, loads)
    await cache.listing(org, "query", TEXT, loads)
    killed = cache.writing(org, ["claim"])
    await killed.__aenter__()
    await other.claim(org, "claim", TEXT, loads)
    loads.value = "as it is"
    assert await other.claim(org, "claim", TEXT, loads) == "as it is"
    assert await other.listing(org, "query", TEXT, loads) == "as it is"
    assert 25 < await redis.ttl(key_of(org) + ":stamp") <= 30, "until its transaction has ended in any case"
    await killed.__aexit__(None, None, None)


async def test_a_writer_that_is_cancelled_forgets_nevertheless(cache: ClaimsCache, org: str) -> None:
    loads = Loads()
    await cache.claim(org, "claim", TEXT, loads)
    written = asyncio.Event()

    async def write() -> None:
        async with cache.writing(org, ["claim"]):
            loads.value = "as it is"
            written.set()
            await asyncio.Event().wait()

    writer = asyncio.create_task(write())
    await written.wait()
    writer.cancel()
    await asyncio.wait([writer])
    assert await cache.claim(org, "claim", TEXT, loads) == "as it is"
    await cache.close()
    assert await cache.claim(org, "claim", TEXT, loads) == "as it is"


@pytest.mark.parametrize("seed", range(4))
async def test_nobody_ever_reads_what_was_there_before_a_write_that_had_ended(
    cache: ClaimsCache, other: ClaimsCache, org: str, seed: int
) -> None:
    """Random readers and writers in two processes, with a store that takes its time before and after it looks."""
    rng = random.Random(seed)
    versions = {f"claim-{n}": 0 for n in range(3)}
    ended = dict(versions)
    number: Codec[int] = Codec(msgspec.json.encode, partial(msgspec.json.decode, type=int))
    wrong: list[str] = []

    async def pause() -> None:
        await asyncio.sleep(rng.random() * 0.004)

    async def load(claim_id: str) -> int:
        await pause()
        version = versions[claim_id]
        await pause()
        return version

    async def load_all() -> dict[str, int]:
        await pause()
        found = dict(versions)
        await pause()
        return found

    everything: Codec[dict[str, int]] = Codec(msgspec.json.encode, partial(msgspec.json.decode, type=dict[str, int]))

    async def reader(by: ClaimsCache) -> None:
        for _ in range(80):
            claim_id, at_least = rng.choice(list(versions)), dict(ended)
            if rng.random() < 0.3:
                found = await by.listing(org, "all", everything, load_all)
            else:
                one = await by.claim(org, claim_id, number, partial(load, claim_id))
                assert one is not None
                found = {claim_id: one}
            wrong.extend(name for name, version in found.items() if version < at_least[name])
            await pause()

    async def writer(by: ClaimsCache) -> None:
        for _ in range(25):
            claim_id = rng.choice(list(versions))
            async with by.writing(org, [claim_id]):
                await pause()
                versions[claim_id] += 1
                version = versions[claim_id]
                await pause()
            ended[claim_id] = max(ended[claim_id], version)
            await asyncio.sleep(rng.random() * 0.03)

    await asyncio.gather(*(reader(by) for by in (cache, other) * 4), *(writer(by) for by in (cache, other)))
    assert wrong == []


async def test_200_who_want_the_same_claim_at_once_in_two_processes_cost_one_read(
    cache: ClaimsCache, other: ClaimsCache, org: str
) -> None:
    loads = Loads()

    async def slowly() -> str | None:
        await loads()
        await asyncio.sleep(0.03)
        return loads.value

    found = await asyncio.gather(*(by.claim(org, "claim", TEXT, slowly) for _ in range(100) for by in (cache, other)))
    assert set(found) == {"as it was"}
    assert loads.count == 1


async def test_a_lock_whose_owner_died_holds_nobody_up_for_long(cache: ClaimsCache, redis: Redis, org: str) -> None:
    await redis.set(key_of(org) + ":lock", b"1", px=60_000)
    began = time.monotonic()
    loads = Loads()
    assert await cache.claim(org, "claim", TEXT, loads) == "as it was"
    assert 0.05 < time.monotonic() - began < 2
    assert await cache.claim(org, "claim", TEXT, loads) == "as it was"
    assert loads.count == 1, "it is kept all the same"


async def test_a_read_that_fails_fails_for_all_who_wait_for_it_and_is_tried_again_by_the_next(
    cache: ClaimsCache, org: str
) -> None:
    goes_on = asyncio.Event()

    async def fails() -> str:
        await goes_on.wait()
        raise LookupError("away")

    waiting = [asyncio.create_task(cache.claim(org, "claim", TEXT, fails)) for _ in range(5)]
    await asyncio.sleep(0.05)
    goes_on.set()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in done] == [LookupError] * 5
    began = time.monotonic()
    assert await cache.claim(org, "claim", TEXT, Loads()) == "as it was"
    assert time.monotonic() - began < 0.05, "the lock was given back"


async def test_who_goes_away_takes_the_read_from_nobody_else(cache: ClaimsCache, org: str) -> None:
    loads = Loads()
    loads.goes_on.clear()
    first = asyncio.create_task(cache.claim(org, "claim", TEXT, loads))
    await loads.read.wait()
    second = asyncio.create_task(cache.claim(org, "claim", TEXT, loads))
    await asyncio.sleep(0.02)
    first.cancel()
    await asyncio.wait([first])
    loads.goes_on.set()
    assert await second == "as it was"
    assert loads.count == 1


async def test_a_write_of_which_only_the_beginning_is_told_leaves_nothing_stale(
    cache: ClaimsCache, other: ClaimsCache, org: str
) -> None:
    """As the consumer may do, whose transactions are of many organizations."""
    loads = Loads()
    await other.claim(org, "claim", TEXT, loads)
    await other.listing(org, "query", TEXT, loads)
    await cache.before_write(org, ["claim"])
    assert await other.claim(org, "claim", TEXT, loads) == "as it was"
    loads.value = "as it is"
    assert await other.claim(org, "claim", TEXT, loads) == "as it is"
    assert await other.listing(org, "query", TEXT, loads) == "as it is"
    await cache.after_write(org, ["claim"])
    before = loads.count
    for _ in range(2):
        assert await other.claim(org, "claim", TEXT, loads) == "as it is"
    assert loads.count == before + 1, "it is kept again"
