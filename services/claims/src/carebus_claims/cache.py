"""Claims and lists of claims kept in Redis, beside the store: never the truth, and never a reason to fail a request.

    claims:v1:{ORG}:CLAIM         a claim, 300 s; its stamp in …:CLAIM:stamp, its lock in …:CLAIM:lock
    claims:v1:{ORG}:list:DIGEST   a list, 60 s; its lock in …:DIGEST:lock; the stamp of all lists in …:lists:stamp

**Never stale.** A value holds the stamp that was there before it was read from the store, and counts only while that
stamp is. A writer replaces the stamp by a mark before its transaction, under which nothing is kept, and deletes
stamp and value after it. So a reader that read before the write and stores after it stores what nobody will believe;
and a writer that is killed in between leaves the mark, which outlives its transaction. Stamps are random and never
come again.

**Never another's.** A value is JSON that names its own key, its stamp and its end, behind an HMAC. One that is forged,
altered, moved to another claim or organization, or kept beyond its time is refused, deleted and counted. What is left
to somebody who may write to Redis is to have the store asked more often.

**Never in the way.** With Redis away the store is asked, at once (`RedisAside`). Keys of writes that Redis did not
hear of are deleted when it is back, before anything is read from it. What was kept before such a write is believed
only by a process that reaches Redis while the writer does not, or for ever cannot since it died; and no longer than
values are kept. As a change names the version it changes, that costs a 409 and loses nothing.

**No stampede.** In a process one reader asks the store and the others wait for it; between processes a lock makes
them wait a moment, too short to notice should the one that has it have died.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from itertools import islice
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from carebus_claims.claim import Claim
from carebus_common import metrics
from carebus_common.http import Unhealthy
from carebus_common.logging import get_logger
from carebus_common.redis_aside import RedisAside, RedisAway

__all__ = ["CLAIM", "CLAIMS", "KEYS", "ClaimsCache", "Codec"]

_log = get_logger(__name__)
T = TypeVar("T")

# What all keys begin with.
KEYS: Final = "claims:v1"
_CLAIM_KEPT: Final = timedelta(seconds=300)
_LIST_KEPT: Final = timedelta(seconds=60)
# Longer than any transaction of claims may take, its retries included.
_MARK_KEPT: Final = timedelta(seconds=30)
# Longer than a read may take; and for how long others wait for it before they ask the store themselves.
_LOCK_KEPT: Final = timedelta(seconds=3)
_LOCK_WAIT: Final = timedelta(milliseconds=100)
_LOCK_POLL: Final = timedelta(milliseconds=5)
# More than it takes every process to see that Redis is back: what one has to delete, no other reads before.
_SETTLING: Final = timedelta(seconds=1)
# A page of claims with hundreds of lines is read from the store each time: it would push out much else.
_LARGEST: Final = 1024 * 1024
_DELETED_AT_ONCE: Final = 1000
_STAMP: Final = re.compile(rb"s[0-9a-f]{16}")
_MARKED: Final = re.compile(rb"w[0-9a-f]{16}")
_MAC: Final = 32


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """How a value becomes bytes of JSON and comes back; `decode` raises ValueError for what is of another form."""

    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: str
    name: str
    stamp: str
    kept: timedelta
    stamp_kept: timedelta


class _Sealed(msgspec.Struct, array_like=True, frozen=True):
    key: str
    stamp: str
    until: float
    value: msgspec.Raw


class _Refused(Exception):
    pass


class ClaimsCache:
    """`key` signs what is kept; replicas must share it. `clock` gives the seconds of the epoch.

    An organization's id must come from a verified token or event; the caller's permission to see a claim is checked on
    what comes from here, not before.
    """

    def __init__(self, redis: RedisAside, key: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        # A derived key of its own, so that the secret may serve elsewhere too.
        self._key = hmac.digest(key, b"carebus claims cache v1", "sha256")
        self._clock = clock
        # Reads of the store under way, by stamp and name: a write takes away all those of its stamps.
        self._flights: dict[str, dict[str, asyncio.Task[Any]]] = {}
        # What Redis has not been told to forget yet, and since when.
        self._pending: dict[str, float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        redis.before_back(self._catch_up)

    @property
    def away(self) -> bool:
        """Whether all goes to the store, since Redis does not answer."""
        return self._redis.away

    async def check(self) -> None:
        """For `/health`: raises Unhealthy while Redis does not answer."""
        try:
            await self._redis.call(lambda: cast(Awaitable[Any], self._redis.client.ping()))
        except RedisAway:
            raise Unhealthy("away: all reads go to the store") from None

    async def claim(
        self, organization_id: str, claim_id: str, codec: Codec[T], load: Callable[[], Awaitable[T | None]]
    ) -> T | None:
        """The claim, at most 300 s old unless it changed, else what `load` reads from the store; None is not kept.

        Raises what `load` raises, to all who wait for it.
        """
        return await self._cached(_claim(organization_id, claim_id), codec, load)

    async def listing(self, organization_id: str, query: str, codec: Codec[T], load: Callable[[], Awaitable[T]]) -> T:
        """A list, at most 60 s old unless a claim of the organization changed, else what `load` reads from the store.

        `query` says all that the list depends on: filters, order, place, limit and *whose* claims the caller may see.
        """
        found = await self._cached(_list(organization_id, query), codec, load)
        return cast(T, found)

    @asynccontextmanager
    async def writing(self, organization_id: str, claim_ids: Collection[str]) -> AsyncIterator[None]:
        """Around every transaction that changes these claims or adds others; whether or not it succeeds."""
        await self.before_write(organization_id, claim_ids)
        try:
            yield
        finally:
            # Although the request is cancelled: the transaction may be through.
            await asyncio.shield(self._spawn(self.after_write(organization_id, claim_ids)))

    async def before_write(self, organization_id: str, claim_ids: Collection[str]) -> None:
        """Before the commit, for who cannot be around it: nothing of these claims is kept or believed for 30 s."""
        await self._mark([_lists_stamp(organization_id), *(_claim(organization_id, each).stamp for each in claim_ids)])

    async def after_write(self, organization_id: str, claim_ids: Collection[str]) -> None:
        """After the commit: the 30 s are over. Without it nothing is wrong, only slower."""
        entries = [_claim(organization_id, each) for each in claim_ids]
        stamps = [_lists_stamp(organization_id), *(entry.stamp for entry in entries)]
        await self._forget(stamps, [*stamps, *(entry.name for entry in entries)])

    async def close(self) -> None:
        """Wait for what is under way. Close Redis afterwards."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    # --- Reading ---------------------------------------------------------------------------------------------------

    async def _cached(self, entry: _Entry, codec: Codec[T], load: Callable[[], Awaitable[T | None]]) -> T | None:
        try:
            found = await self._look(entry, codec)
        except RedisAway:
            result = "away"
        except _Refused:
            result = "refused"
        else:
            result = "miss" if found is None else "hit"
        metrics.CACHE_READS.labels(entry.kind, result).inc()
        if result == "hit":
            return found
        flights = self._flights.setdefault(entry.stamp, {})
        flight = flights.get(entry.name)
        if flight is None:
            flight = flights[entry.name] = self._spawn(self._fill(entry, codec, load))
            flight.add_done_callback(lambda done: self._landed(entry, done))
        loaded: T | None = await asyncio.shield(flight)
        return loaded

    def _landed(self, entry: _Entry, flight: asyncio.Task[Any]) -> None:
        if not flight.cancelled():
            # Seen, lest it be reported where every reader who waited has gone away.
            flight.exception()
        flights = self._flights.get(entry.stamp, {})
        if flights.get(entry.name) is flight:
            del flights[entry.name]
            if not flights:
                del self._flights[entry.stamp]

    async def _look(self, entry: _Entry, codec: Codec[T]) -> T | None:
        """What is kept; None if nothing, or nothing that counts. Raises RedisAway, and _Refused for what is deleted."""
        answer: Any = await self._redis.call(lambda: self._redis.client.mget(entry.name, entry.stamp))
        sealed, stamp = answer
        if sealed is None or stamp is None:
            return None
        try:
            value = self._opened(entry, sealed, stamp)
            return codec.decode(bytes(value)) if value is not None else None
        except (ValueError, RecursionError, _Refused) as error:
            _log.warning("cache-entry-refused", kind=entry.kind, why=str(error) if type(error) is _Refused else "form")
            await self._redis.call(lambda: self._redis.client.delete(entry.name))
            raise _Refused from None

    async def _fill(self, entry: _Entry, codec: Codec[T], load: Callable[[], Awaitable[T | None]]) -> T | None:
        stamp, locked = None, False
        try:
            stamp, locked = await self._stamp(entry)
            if stamp is not None and not locked:
                found = await self._wait_for_another(entry, codec)
                if found is not None:
                    return found
        except (RedisAway, _Refused):
            pass
        value = None
        try:
            value = await load()
        finally:
            if stamp is not None:
                await self._store(entry, stamp, codec.encode(value) if value is not None else None, locked=locked)
        return value

    async def _stamp(self, entry: _Entry) -> tuple[bytes | None, bool]:
        """The stamp to store with, None if nothing may be stored now; and whether this is the one to read the store."""
        made = b"s" + secrets.token_hex(8).encode()
        async with self._redis.client.pipeline(transaction=False) as both:
            both.set(entry.stamp, made, nx=True, get=True, px=entry.stamp_kept)
            both.set(f"{entry.name}:lock", b"1", nx=True, px=_LOCK_KEPT)
            before, locked = await self._redis.call(lambda: both.execute(raise_on_error=False))
        if before is None:
            return made, locked is True
        if isinstance(before, bytes) and _STAMP.fullmatch(before):
            return before, locked is True
        if not isinstance(before, bytes) or not _MARKED.fullmatch(before):
            # Nothing of ours: somebody put it there, perhaps of another type.
            await self._redis.call(lambda: self._redis.client.delete(entry.stamp))
        return None, False

    async def _wait_for_another(self, entry: _Entry, codec: Codec[T]) -> T | None:
        until = time.monotonic() + _LOCK_WAIT.total_seconds()
        while time.monotonic() < until:
            await asyncio.sleep(_LOCK_POLL.total_seconds())
            found = await self._look(entry, codec)
            if found is not None:
                return found
        return None

    async def _store(self, entry: _Entry, stamp: bytes, value: bytes | None, *, locked: bool) -> None:
        async with self._redis.client.pipeline(transaction=False) as commands:
            if value is not None and len(value) <= _LARGEST:
                commands.set(entry.name, self._sealed(entry, stamp, value), px=entry.kept)
            if locked:
                commands.delete(f"{entry.name}:lock")
            try:
                await self._redis.call(lambda: commands.execute(raise_on_error=False))
            except RedisAway:
                return

    # --- Sealing ---------------------------------------------------------------------------------------------------

    def _sealed(self, entry: _Entry, stamp: bytes, value: bytes) -> bytes:
        until = self._clock() + entry.kept.total_seconds()
        body = msgspec.json.encode(_Sealed(entry.name, stamp.decode(), until, msgspec.Raw(value)))
        return hmac.digest(self._key, body, "sha256") + body

    def _opened(self, entry: _Entry, sealed: bytes, stamp: bytes) -> msgspec.Raw | None:
        """The value, None if its stamp is another. Raises _Refused."""
        mac, body = sealed[:_MAC], sealed[_MAC:]
        if not hmac.compare_digest(mac, hmac.digest(self._key, body, "sha256")):
            raise _Refused("signature")
        inside = _decode_sealed(body)
        if inside.key != entry.name:
            raise _Refused("key")
        if inside.until <= self._clock():
            raise _Refused("age")
        return inside.value if inside.stamp.encode() == stamp else None

    # --- Forgetting ------------------------------------------------------------------------------------------------

    async def _mark(self, stamps: Collection[str]) -> None:
        """Before a write: nothing is kept under these stamps until they are deleted, or the mark ends."""
        mark = b"w" + secrets.token_hex(8).encode()
        self._ground(stamps)
        async with self._redis.client.pipeline(transaction=False) as commands:
            for stamp in stamps:
                commands.set(stamp, mark, px=_MARK_KEPT)
            try:
                await self._redis.call(lambda: commands.execute(raise_on_error=False))
            except RedisAway:
                return

    async def _forget(self, stamps: Collection[str], names: Collection[str]) -> None:
        """After a write, by exact keys; what Redis does not hear of is kept for when it does."""
        self._ground(stamps)
        try:
            await self._redis.call(lambda: self._redis.client.delete(*names))
        except RedisAway:
            now = time.monotonic()
            for name in names:
                self._pending.pop(name, None)
                self._pending[name] = now
            # What is older than values are kept is gone by itself: a long absence fills no memory.
            while self._pending and next(iter(self._pending.values())) < now - _CLAIM_KEPT.total_seconds():
                del self._pending[next(iter(self._pending))]
            metrics.CACHE_PENDING.set(len(self._pending))

    def _ground(self, stamps: Iterable[str]) -> None:
        """Who comes from now on must not join a read that began before."""
        for stamp in stamps:
            self._flights.pop(stamp, None)

    async def _catch_up(self) -> None:
        """Delete what was to be deleted while Redis was away. Raises what the client raises."""
        await self._delete_pending()
        await asyncio.sleep(_SETTLING.total_seconds())
        await self._delete_pending()

    async def _delete_pending(self) -> None:
        while self._pending:
            some = list(islice(self._pending.items(), _DELETED_AT_ONCE))
            await self._redis.client.delete(*(name for name, _ in some))
            for name, at in some:
                # Unless it was written once more meanwhile: then it is to be deleted once more.
                if self._pending.get(name) == at:
                    del self._pending[name]
            metrics.CACHE_PENDING.set(len(self._pending))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


# Decimals become text and times RFC 3339, of which nothing is lost.
CLAIM: Final[Codec[Claim]] = Codec(msgspec.json.encode, msgspec.json.Decoder(Claim).decode)
CLAIMS: Final[Codec[list[Claim]]] = Codec(msgspec.json.encode, msgspec.json.Decoder(list[Claim]).decode)

_sealed_decoder: Final = msgspec.json.Decoder(_Sealed)


def _decode_sealed(body: bytes) -> _Sealed:
    return _sealed_decoder.decode(body)


def _claim(organization_id: str, claim_id: str) -> _Entry:
    name = f"{_prefix(organization_id)}:{claim_id}"
    return _Entry("claim", name, f"{name}:stamp", _CLAIM_KEPT, 2 * _CLAIM_KEPT)


def _list(organization_id: str, query: str) -> _Entry:
    name = f"{_prefix(organization_id)}:list:{sha256(query.encode()).hexdigest()}"
    return _Entry("list", name, _lists_stamp(organization_id), _LIST_KEPT, 60 * _LIST_KEPT)


def _lists_stamp(organization_id: str) -> str:
    return f"{_prefix(organization_id)}:lists:stamp"


def _prefix(organization_id: str) -> str:
    # The braces keep an organization's keys on one node of a cluster, where MGET needs them.
    return f"{KEYS}:{{{organization_id}}}"
