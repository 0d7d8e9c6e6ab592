"""Redis as something a service can do without: a call answers soon, or fails at once while Redis is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from carebus_common.logging import get_logger

__all__ = ["RedisAside", "RedisAway", "connect"]

_log = get_logger(__name__)
T = TypeVar("T")

_PROBE_EVERY: Final = timedelta(seconds=0.5)


class RedisAway(Exception):
    """Redis did not answer; go on without it."""


def connect(url: str, within: timedelta, *, connections: int = 32) -> Redis:
    """A client that connects when used. Waiting for a connection, connecting and the answer may each take that long.

    With fewer `connections` than calls at once, some wait for one, and one that waits for too long fails.

    Commands are not to be cancelled from outside instead: that leaves connections behind.
    """
    seconds = within.total_seconds()
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
        url,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        max_connections=connections,
        timeout=seconds,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


class RedisAside:
    """Guards every call: after a failure the following ones fail at once, until a probe in the background succeeds.

    So a request waits for a missing Redis at most once, and hardly any request does.
    """

    def __init__(self, client: Redis) -> None:
        self.client = client
        self._away = False
        self._probe: asyncio.Task[None] | None = None
        self._catch_up: Callable[[], Awaitable[None]] | None = None

    @property
    def away(self) -> bool:
        """Whether calls fail at once."""
        return self._away

    def before_back(self, catch_up: Callable[[], Awaitable[None]]) -> None:
        """Have `catch_up` awaited when Redis answers again and before any call passes.

        It may raise what the client raises: Redis is still away then.
        """
        self._catch_up = catch_up

    async def call(self, command: Callable[[], Awaitable[T]]) -> T:
        """The command's answer; raises `RedisAway`."""
        if self._away:
            raise RedisAway
        try:
            return await command()
        except (RedisError, OSError, TimeoutError) as error:
            if not self._away:
                self._away = True
                _log.warning("redis-away", error=type(error).__name__)
                self._probe = asyncio.get_running_loop().create_task(self._until_back())
            raise RedisAway from None

    async def _until_back(self) -> None:
        while True:
            await asyncio.sleep(_PROBE_EVERY.total_seconds())
            try:
                ping: Any = self.client.ping()
                await ping
                if self._catch_up is not None:
                    await self._catch_up()
            except (RedisError, OSError, TimeoutError):
                continue
            self._away = False
            _log.info("redis-back")
            return

    async def close(self) -> None:
        """Disconnect."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
        await self.client.aclose()
