"""How many events and bytes an organization may send in a minute, counted in Redis over all processes.

A process leases a share of what is left (a 64th) and spends it from memory for at most a tenth of a second; then the
rest goes back. Near the limit there is nothing to lease beyond what a request needs, so that the last event of the
allowance passes and the next one does not, whichever process they come to. A window begins with its first event.

With Redis away everybody may send, and a metric says so.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple

from carebus_common import metrics
from carebus_common.errors import RateLimited
from carebus_common.logging import get_logger
from carebus_common.redis_aside import RedisAside, RedisAway

__all__ = ["Grant", "RateLimiter"]

_log = get_logger(__name__)

WINDOW: Final = timedelta(minutes=1)
_LEASE: Final = timedelta(milliseconds=100)
# After this long what was leased and not spent has come back, or its process is gone.
_LEASE_RETURNED: Final = timedelta(milliseconds=200)
_SHARE: Final = 64
# As many organizations are remembered; beyond that, those whose window is over are forgotten.
_MANY: Final = 10_000

# KEYS[1]: the organization's window. ARGV: its length in ms; the limits of events and bytes; how many events are
# wanted (any part of them) and bytes (all or nothing); of which window how many events and bytes come back; how
# long a lease may last in ms.
# Returns: the window; ms to its end; events granted for the request, and leased beyond it; bytes leased beyond it;
# events and bytes left; ms until all that is leased has come back.
_SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local length, most_events, most_bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local events, bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local window, ends, used_events, used_bytes, loose =
  unpack(redis.call('HMGET', KEYS[1], 'window', 'ends', 'events', 'bytes', 'loose'))
if not window or tonumber(ends) <= now then
  window, ends, used_events, used_bytes, loose = time[1] .. '.' .. time[2], now + length, 0, 0, 0
else
  ends, used_events, used_bytes, loose = tonumber(ends), tonumber(used_events), tonumber(used_bytes), tonumber(loose)
  if window == ARGV[6] then
    used_events = math.max(0, used_events - tonumber(ARGV[7]))
    used_bytes = math.max(0, used_bytes - tonumber(ARGV[8]))
  end
end
local left_events, left_bytes = most_events - used_events, most_bytes - used_bytes
local granted, spare_events, spare_bytes = 0, 0, 0
if events > 0 and left_events > 0 and left_bytes >= bytes then
  granted = math.min(events, left_events)
  spare_events = math.floor((left_events - granted) / 64)
  spare_bytes = math.floor((left_bytes - bytes) / 64)
  if spare_events == 0 then spare_bytes = 0 end
  used_events = used_events + granted + spare_events
  used_bytes = used_bytes + bytes + spare_bytes
  if spare_events > 0 then loose = now + tonumber(ARGV[9]) end
end
redis.call('HSET', KEYS[1], 'window', window, 'ends', string.format('%.0f', ends),
  'events', string.format('%.0f', used_events), 'bytes', string.format('%.0f', used_bytes),
  'loose', string.format('%.0f', loose))
redis.call('PEXPIRE', KEYS[1], ends - now)
return {window, ends - now, granted, spare_events, spare_bytes,
  most_events - used_events, most_bytes - used_bytes, math.max(0, loose - now)}
""".replace("64", str(_SHARE))


class Grant(NamedTuple):
    """How many events may be sent, and what the rest is refused with."""

    events: int
    refusal: RateLimited | None = None


@dataclass(slots=True)
class _Allowance:
    """What one organization may still spend here without asking, and until when nothing is to be had at all."""

    lock: asyncio.Lock
    window: str = ""
    ends: float = 0.0
    events: int = 0
    bytes: int = 0
    until: float = 0.0
    exhausted: str = ""


class RateLimiter:
    """Limits organizations by events and by bytes a minute."""

    def __init__(self, redis: RedisAside, *, events_per_minute: int, bytes_per_minute: int) -> None:
        self._redis = redis
        self._script = redis.client.register_script(_SCRIPT)
        self._limits = {"count": events_per_minute, "bytes": bytes_per_minute}
        self._allowances: dict[str, _Allowance] = {}
        self._returns: set[asyncio.Task[None]] = set()
        self._closed = False

    async def take(self, organization_id: str, events: int, size: int) -> Grant:
        """Spend `size` bytes and up to `events` events, at least one.

        Raises `RateLimited` if not even one is left. Adds no round trip while a lease lasts, and never more wait
        than Redis's timeout.
        """
        allowance = self._allowances.get(organization_id)
        if allowance is None:
            self._forget_some()
            allowance = self._allowances[organization_id] = _Allowance(asyncio.Lock())
        if self._spend(allowance, events, size):
            return Grant(events)
        try:
            async with allowance.lock:
                if self._spend(allowance, events, size):
                    return Grant(events)
                return await self._ask(organization_id, allowance, events, size)
        except RedisAway:
            metrics.RATE_LIMIT_FAILED_OPEN.inc()
            return Grant(events)

    def _spend(self, allowance: _Allowance, events: int, size: int) -> bool:
        """Take it from the lease, if that suffices. Raises RateLimited where Redis has said that nothing is left."""
        now = asyncio.get_running_loop().time()
        if now < allowance.until and events <= allowance.events and size <= allowance.bytes:
            allowance.events -= events
            allowance.bytes -= size
            return True
        if allowance.exhausted and now < allowance.ends:
            raise self._refusal(allowance.exhausted, 0, allowance.ends - now)
        return False

    async def _ask(self, organization_id: str, allowance: _Allowance, events: int, size: int) -> Grant:
        """Ask Redis, giving back what is left of the lease; again if others may still give something back."""
        loop = asyncio.get_running_loop()
        granted = 0
        for _ in range(3):
            given = (allowance.window, allowance.events, allowance.bytes)
            allowance.events = allowance.bytes = 0
            window, ends_in, more, spare_events, spare_bytes, left_events, left_bytes, loose = await self._run(
                organization_id, events - granted, 0 if granted else size, given
            )
            now = loop.time()
            granted += more
            allowance.window = window.decode()
            allowance.ends = now + ends_in / 1000
            allowance.events, allowance.bytes = spare_events, spare_bytes
            allowance.until = min(allowance.ends, now + _LEASE.total_seconds())
            allowance.exhausted = ""
            if spare_events:
                loop.call_later(_LEASE.total_seconds(), self._give_back, organization_id, allowance)
            if granted == events:
                return Grant(events)
            if not loose:
                break
            # Another process may have leased the rest and not spent it; it is back in a moment.
            await asyncio.sleep(min(loose, ends_in) / 1000)
        if left_events <= 0 or left_bytes <= 0:
            allowance.exhausted = "count" if left_events <= 0 else "bytes"
        which = "count" if left_events <= 0 else "bytes"
        refusal = self._refusal(which, max(0, left_events if which == "count" else left_bytes), ends_in / 1000)
        if granted:
            return Grant(granted, refusal)
        raise refusal

    async def _run(
        self, organization_id: str, events: int, size: int, given: tuple[str, int, int]
    ) -> tuple[bytes, int, int, int, int, int, int, int]:
        arguments: list[str | int] = [
            _milliseconds(WINDOW),
            self._limits["count"],
            self._limits["bytes"],
            events,
            size,
            *given,
            _milliseconds(_LEASE_RETURNED),
        ]
        key = f"carebus:rate-limit:{organization_id}"
        answer: tuple[bytes, int, int, int, int, int, int, int] = await self._redis.call(
            lambda: self._script(keys=[key], args=arguments)
        )
        return answer

    def _give_back(self, organization_id: str, allowance: _Allowance) -> None:
        """Called when a lease is over: what was not spent is for others, unless a newer lease took it over."""
        over = asyncio.get_running_loop().time() >= allowance.until
        if self._closed or not over or not (allowance.events or allowance.bytes):
            return
        task = asyncio.get_running_loop().create_task(self._return_lease(organization_id, allowance))
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)

    async def _return_lease(self, organization_id: str, allowance: _Allowance) -> None:
        async with allowance.lock:
            if asyncio.get_running_loop().time() < allowance.until:
                return
            given = (allowance.window, allowance.events, allowance.bytes)
            allowance.events = allowance.bytes = 0
            try:
                await self._run(organization_id, 0, 0, given)
            except RedisAway:
                _log.info("lease-not-returned")

    async def close(self) -> None:
        """Give all leases back, before Redis is disconnected."""
        self._closed = True
        for organization_id, allowance in self._allowances.items():
            allowance.until = 0.0
            if allowance.events or allowance.bytes:
                await self._return_lease(organization_id, allowance)
        await asyncio.gather(*self._returns)

    def _refusal(self, which: str, left: int, seconds: float) -> RateLimited:
        metrics.RATE_LIMITED.labels(which).inc()
        count, size, window = self._limits["count"], self._limits["bytes"], int(WINDOW.total_seconds())
        return RateLimited(
            "The organization has sent what it may within a minute.",
            retry_after=timedelta(seconds=seconds),
            details=[{"path": which, "rule": f"at most {self._limits[which]} a minute"}],
            headers={
                "RateLimit-Limit": str(self._limits[which]),
                "RateLimit-Remaining": str(left),
                "RateLimit-Reset": str(math.ceil(seconds)),
                "RateLimit-Policy": f'{count};w={window};comment="events", {size};w={window};comment="bytes"',
            },
        )

    def _forget_some(self) -> None:
        if len(self._allowances) < _MANY:
            return
        now = asyncio.get_running_loop().time()
        for organization_id in [name for name, one in self._allowances.items() if one.ends < now]:
            if not self._allowances[organization_id].lock.locked():
                del self._allowances[organization_id]


def _milliseconds(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)
