"""Fixtures for what stands on Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from carebus_claims.cache import ClaimsCache
from carebus_common.redis_aside import connect
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name

from ..caching import caching


@pytest_asyncio.fixture
async def cache(stack: StackUrls) -> AsyncIterator[ClaimsCache]:
    async with caching(stack.redis_url) as cache:
        yield cache


@pytest_asyncio.fixture
async def other(stack: StackUrls) -> AsyncIterator[ClaimsCache]:
    """Another process's."""
    async with caching(stack.redis_url) as cache:
        yield cache


@pytest_asyncio.fixture
async def redis(stack: StackUrls) -> AsyncIterator[Redis]:
    """Whoever else may write to Redis."""
    client = connect(stack.redis_url, timedelta(seconds=2))
    yield client
    await client.aclose()


@pytest.fixture
def org() -> str:
    return random_name("org")
