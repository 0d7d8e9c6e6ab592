"""The cache on a Valkey that somebody else writes to: what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from carebus_claims.cache import ClaimsCache, Codec
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name

from ..caching import TEXT, Loads, caching, key_of, reads


async def poisoned(cache: ClaimsCache, redis: Redis, org: str, value: Callable[[bytes], bytes]) -> None:
    """With `value` of what is kept in its place, the store is asked, the refusal counted, and the next one kept."""
    loads = Loads()
    await cache.claim(org, "claim", TEXT, loads)
    sealed: Any = await redis.get(key_of(org))
    await redis.set(key_of(org), value(sealed))
    loads.value = "the truth"
    refused = reads("claim", "refused")
    assert await cache.claim(org, "claim", TEXT, loads) == "the truth"
    assert reads("claim", "refused") == refused + 1
    assert await cache.claim(org, "claim", TEXT, loads) == "the truth"
    assert loads.count == 2


@pytest.mark.parametrize(
    "value",
    [
        lambda sealed: sealed.replace(b"as it was", b"not at all"),
        lambda sealed: sealed[32:],
        lambda sealed: b"\0" * 32 + sealed[32:],
        lambda sealed: sealed[:-1],
        lambda _: b"",
        lambda _: b'{"status": "paid"}',
        lambda _: b"[" * 100_000,
    ],
    ids=["altered", "unsigned", "signed with nothing", "shortened", "empty", "plain", "deep"],
)
async def test_a_poisoned_value_is_refused(
    cache: ClaimsCache, redis: Redis, org: str, value: Callable[[bytes], bytes]
) -> None:
    await poisoned(cache, redis, org, value)


async def test_a_value_signed_with_another_key_is_refused(
    stack: StackUrls, cache: ClaimsCache, redis: Redis, org: str
) -> None:
    loads = Loads("forged")
    async with caching(stack.redis_url, key=b"guessed") as forger:
        await forger.claim(org, "claim", TEXT, loads)
    assert await cache.claim(org, "claim", TEXT, Loads("the truth")) == "the truth"


@pytest.mark.parametrize("whose", ["another organization's", "another claim's"])
async def test_a_value_swapped_with_another_s_is_refused_and_deleted(
    cache: ClaimsCache, redis: Redis, org: str, whose: str
) -> None:
    """With its stamp, so that only the key inside tells."""
    another = (random_name("org"), "claim") if whose == "another organization's" else (org, "another")
    await cache.claim(*another, TEXT, Loads("another's secret"))
    await cache.claim(org, "claim", TEXT, Loads())
    for suffix in ("", ":stamp"):
        theirs = await redis.get(key_of(*another) + suffix)
        assert theirs is not None
        await redis.set(key_of(org) + suffix, theirs)
    refused = reads("claim", "refused")
    failing = Loads()
    assert await cache.claim(org, "claim", TEXT, failing) == "as it was"
    assert reads("claim", "refused") == refused + 1
    assert b"another's secret" not in (await redis.get(key_of(org)) or b"")


async def test_a_list_swapped_with_another_query_s_is_refused(cache: ClaimsCache, redis: Redis, org: str) -> None:
    await cache.listing(org, "everything", TEXT, Loads("everything"))
    (everything,) = [key async for key in redis.scan_iter(f"claims:v1:{{{org}}}:list:*")]
    value = await redis.get(everything)
    await cache.listing(org, "mine", TEXT, Loads("mine"))
    (mine,) = [key async for key in redis.scan_iter(f"claims:v1:{{{org}}}:list:*") if key != everything]
    assert value is not None
    await redis.set(mine, value)
    assert await cache.listing(org, "mine", TEXT, Loads("mine")) == "mine"


async def test_a_value_that_is_brought_back_after_a_write_does_not_count(
    cache: ClaimsCache, redis: Redis, org: str
) -> None:
    loads = Loads()
    await cache.claim(org, "claim", TEXT, loads)
    old = await redis.get(key_of(org))
    assert old is not None
    async with cache.writing(org, ["claim"]):
        loads.value = "as it is"
    await cache.claim(org, "claim", TEXT, loads)
    await redis.set(key_of(org), old)
    assert await cache.claim(org, "claim", TEXT, loads) == "as it is"


async def test_a_value_that_is_brought_back_with_its_stamp_is_refused_once_its_time_is_over(
    stack: StackUrls, redis: Redis, org: str
) -> None:
    now = time.time()
    async with caching(stack.redis_url, clock=lambda: now) as cache:
        await cache.claim(org, "claim", TEXT, Loads())
        await redis.persist(key_of(org))
        now += 301
        assert await cache.claim(org, "claim", TEXT, Loads("the truth")) == "the truth"


async def test_a_value_of_another_form_is_refused(cache: ClaimsCache, org: str) -> None:
    """As after an upgrade that changed what is kept."""
    await cache.claim(org, "claim", TEXT, Loads())
    number: Codec[int] = Codec(msgspec.json.encode, partial(msgspec.json.decode, type=int))

    async def load() -> int:
        return 7

    assert await cache.claim(org, "claim", number, load) == 7
    assert await cache.claim(org, "claim", number, load) == 7


@pytest.mark.parametrize("suffix", ["", ":stamp", ":lock"])
@pytest.mark.parametrize("junk", ["a list", "text"])
async def test_junk_under_any_of_the_keys_costs_a_read_of_the_store_at_most(
    cache: ClaimsCache, redis: Redis, org: str, suffix: str, junk: str
) -> None:
    if junk == "a list":
        await redis.lpush(key_of(org) + suffix, "junk")
    else:
        await redis.set(key_of(org) + suffix, b"junk \xff" * 10_000)
    loads = Loads()
    for _ in range(3):
        assert await cache.claim(org, "claim", TEXT, loads) == "as it was"
    assert not cache.away
    async with cache.writing(org, ["claim"]):
        loads.value = "as it is"
    assert await cache.claim(org, "claim", TEXT, loads) == "as it is"
