"""Fixtures for every test in the workspace."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from carebus_local.parts import StackUrls
from carebus_local.testing import stack_for_tests


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack() -> AsyncIterator[StackUrls]:
    """Real parts, one set for the whole run: `.kafka_bootstrap`, `.mongo_url`, `.redis_url`.

    Everybody shares them: use random names (`carebus_local.testing.random_name`) for topics, consumer groups,
    databases and organizations. A test that takes a part away starts its own with `carebus_local.parts.running_parts`.
    """
    async with stack_for_tests() as urls:
        yield urls
