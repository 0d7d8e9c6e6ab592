"""The cache as tests of it have it: one a process, a store that counts, and somebody else at the same Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec

from carebus_claims.cache import ClaimsCache, Codec
from carebus_common import metrics
from carebus_common.redis_aside import RedisAside, connect

KEY = b"the key of these tests"
TEXT: Codec[Any] = Codec(msgspec.json.encode, partial(msgspec.json.decode, type=str))


@asynccontextmanager
async def caching(
    redis_url: str, *, key: bytes = KEY, within: timedelta = timedelta(seconds=2), **options: Any
) -> AsyncIterator[ClaimsCache]:
    """As one process has it."""
    redis = RedisAside(connect(redis_url, within))
    cache = ClaimsCache(redis, key, **options)
    try:
        yield cache
    finally:
        await cache.close()
        await redis.close()


class Loads:
    """A store of one value, which counts its reads and can be made to wait before and after."""

    def __init__(self, value: str | None = "as it was") -> None:
        self.value = value
        self.count = 0
        self.read = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def __call__(self) -> Any:
        self.count += 1
        value = self.value
        self.read.set()
        await self.goes_on.wait()
        return value


def reads(kind: str, result: str) -> float:
    return float(metrics.CACHE_READS.labels(kind, result)._value.get())


def key_of(org: str, claim_id: str = "claim") -> str:
    return f"claims:v1:{{{org}}}:{claim_id}"
