"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): the same key and body get the same receipt.

The eventId follows from organization and key (UUIDv5), so that a repeated event is found out downstream whatever is
known here. What Redis adds, for a day: the first receipt is replayed instead of publishing again, and another body
under the same key is refused (422). Redis away costs only that.

The draft answers 409 to a repetition while the first request is in progress. Here both are published, with one
eventId and thus one effect: a sender that lost its connection need not wait for a request it cannot see any more.
"""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from carebus_common import metrics
from carebus_common.errors import NotAllowed
from carebus_common.messages import Receipt
from carebus_common.redis_aside import RedisAside, RedisAway
from carebus_ingest.answers import Stored

__all__ = ["Replays"]

_DIGEST: Final = 16


class Replays:
    """Remembers what keys were used for, and the receipts."""

    def __init__(self, redis: RedisAside, retention: timedelta) -> None:
        self._redis = redis
        self._retention = retention

    async def begin(self, organization_id: str, key: str, body: bytes) -> Stored | None:
        """Claim the key for this body; the earlier answer if there was one.

        Raises `NotAllowed` if the key was used for another body.
        """
        digest = _digest(body)
        try:
            known: Any = await self._redis.call(
                lambda: self._redis.client.set(
                    _name(organization_id, key), digest, nx=True, get=True, ex=self._retention
                )
            )
        except RedisAway:
            metrics.IDEMPOTENCY_FAILED_OPEN.inc()
            return None
        if known is None:
            return None
        if known[:_DIGEST] != digest:
            raise NotAllowed(
                "The Idempotency-Key was used for another body.",
                details=[{"path": "idempotency-key", "rule": "one key for one body"}],
            )
        return _replay(known[_DIGEST:])

    async def finish(self, organization_id: str, key: str, body: bytes, stored: Stored) -> None:
        """Keep the answer."""
        value = b"%s%s%d:%d" % (_digest(body), stored.event_id.bytes, stored.receipt.partition, stored.receipt.offset)
        try:
            await self._redis.call(
                lambda: self._redis.client.set(_name(organization_id, key), value, ex=self._retention)
            )
        except RedisAway:
            metrics.IDEMPOTENCY_FAILED_OPEN.inc()


def _replay(value: bytes) -> Stored | None:
    if not value:
        return None
    partition, _, offset = value[16:].partition(b":")
    return Stored(UUID(bytes=value[:16]), Receipt(int(partition), int(offset)))


def _digest(body: bytes) -> bytes:
    return sha256(body).digest()[:_DIGEST]


def _name(organization_id: str, key: str) -> str:
    """Hashed, since a key is the sender's own text and may be long."""
    return f"carebus:idempotency:{organization_id}:{sha256(key.encode()).hexdigest()[:32]}"
