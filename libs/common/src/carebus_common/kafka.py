"""The publisher: a message is acknowledged by the broker with acks=all within the deadline, or it is not sent later.

    publish ──▶ lane of the topic's partition ──▶ one batch a lane, one request a node ──▶ receipt
                     (order is fixed here)              (kafka_session.Session)

One request is in flight to a node; what is published meanwhile makes up the next one. Whenever an outcome is in
doubt (a deadline passed, an error that breaks the idempotent producer's sequence), everything outstanding is
answered with `BrokerAway`, the producer is aborted and another one is built in the background. Messages are never
carried over to it: their callers have been told, and a retry that carries the same eventId is harmless.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2

from carebus_common import metrics
from carebus_common.cancellation import cancelled
from carebus_common.kafka_session import REFUSALS, Session
from carebus_common.logging import get_logger
from carebus_common.messages import Message, Receipt

__all__ = ["MAX_DEAD_LETTER_BYTES", "BrokerAway", "MessageRefused", "Publisher"]

# Largest message by default: the topics' max.message.bytes less the batch's own header; a dead letter may be larger.
MAX_MESSAGE_BYTES: Final = 1024 * 1024 - 1024
MAX_DEAD_LETTER_BYTES: Final = MAX_MESSAGE_BYTES + 64 * 1024
_RECORD_OVERHEAD: Final = 64
_CONNECT_WITHIN: Final = timedelta(seconds=3)
_PROBE_AFTER: Final = timedelta(seconds=2)
_REBUILD_PAUSE: Final = timedelta(seconds=0.5)
_log = get_logger(__name__)


class BrokerAway(Exception):
    """The broker has not acknowledged the message. It may have stored it, so retry with the same id."""


class MessageRefused(Exception):
    """The broker will never take this message (it is too large); others are not affected."""


Outcome = Receipt | BrokerAway | MessageRefused


@dataclass(slots=True, eq=False)
class _Entry:
    message: Message
    size: int
    deadline: float
    # Errors are results here, as an exception nobody waits for any more would be reported as unretrieved.
    outcome: asyncio.Future[Outcome]
    alone: bool = False


@dataclass(slots=True, eq=False)
class _Lane:
    """One partition: what waits for the next request, in order, and what the broker has now."""

    partition: TopicPartition
    waiting: deque[_Entry] = field(default_factory=deque)
    sending: list[_Entry] = field(default_factory=list)


@lru_cache(maxsize=1 << 16)
def _hash_of(key: bytes) -> int:
    # The Java client's default partitioner, so that every producer agrees on a patient's partition.
    return int(murmur2(key)) & 0x7FFFFFFF


class Publisher:
    """Publishes messages with an idempotent producer. Messages of one key keep the order of the calls.

    At most `max_messages` and `max_bytes` wait for their acknowledgement; beyond that `publish` raises
    `BrokerAway` at once. `topics` are looked up when connecting, so that the first message need not wait.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        client_id: str,
        deadline: timedelta = timedelta(seconds=1.5),
        topics: Sequence[str] = (),
        max_messages: int = 20_000,
        max_bytes: int = 16 * 1024 * 1024,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._deadline = deadline
        self._seconds = deadline.total_seconds()
        self._known_topics = set(topics)
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._max_message_bytes = max_message_bytes

        self._session: Session | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._attempted = asyncio.Event()
        self._broken = asyncio.Event()
        self._stopping = False
        self._aborted: deque[Session] = deque(maxlen=2)
        # Counts producers given up, so that a caller with many messages notices a break among them.
        self._breaks = 0
        self._spread = itertools.count()
        self._forget()

    def _forget(self) -> None:
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._ready: dict[_Lane, None] = {}
        self._routes: dict[str, list[_Lane]] = {}
        self._busy: Counter[int] = Counter()
        self._unacknowledged: deque[_Entry] = deque()
        self._messages = 0
        self._bytes = 0
        self._flushing = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._room: list[asyncio.Future[None]] = []
        self._last_ack = 0.0

    @property
    def available(self) -> bool:
        """Whether there is a working producer, so that `publish` may succeed."""
        return self._session is not None and not self._stopping

    @property
    def rebuilds(self) -> int:
        """How many producers were given up since the start."""
        return self._breaks

    async def start(self) -> None:
        """Begin connecting, for as long as it takes, and wait for the first attempt; never fails."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="kafka-publisher")
        await self._attempted.wait()

    async def stop(self) -> None:
        """Refuse new messages, wait until those in flight are answered (at most the deadline), disconnect."""
        self._stopping = True
        for entry in list(self._unacknowledged):
            await asyncio.wait({entry.outcome}, timeout=self._seconds)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        self._break("stopped")
        for session in self._aborted:
            await session.closed()

    async def publish(self, message: Message) -> Receipt:
        """The broker's receipt; raises `BrokerAway` (within the deadline) or `MessageRefused`."""
        if message.topic not in self._routes:
            await self._learn(message.topic)
        outcome = await self._submit(message).outcome
        if isinstance(outcome, Receipt):
            return outcome
        raise outcome

    async def publish_each(self, messages: Iterable[Message]) -> list[Outcome]:
        """Each message's outcome, in order; waits for room instead of failing.

        After the first `BrokerAway` the rest gets it too, so that no message is stored after one of the same
        key that has to be retried.
        """
        breaks = self._breaks
        outcomes: list[asyncio.Future[Outcome] | Outcome] = []
        away: BrokerAway | None = None
        for message in messages:
            if away is not None:
                outcomes.append(away)
                continue
            try:
                outcomes.append(await self._submit_in_turn(message, breaks))
            except MessageRefused as refused:
                outcomes.append(refused)
            except BrokerAway as error:
                away = error
                outcomes.append(error)
        return [await outcome if isinstance(outcome, asyncio.Future) else outcome for outcome in outcomes]

    async def _submit_in_turn(self, message: Message, breaks: int) -> asyncio.Future[Outcome]:
        if message.topic not in self._routes:
            await self._learn(message.topic)
        await self._await_room()
        if self._breaks != breaks:
            raise BrokerAway("the producer was given up meanwhile")
        return self._submit(message).outcome

    # Everything below runs without awaiting, so the order of calls is the order in the lanes.

    def _submit(self, message: Message) -> _Entry:
        size = _RECORD_OVERHEAD + len(message.key or b"") + len(message.value or b"")
        for name, value in message.headers:
            size += len(name) + len(value) + 4
        if size > self._max_message_bytes:
            raise MessageRefused(f"the message has {size} bytes, more than {self._max_message_bytes}")
        if self._session is None or self._stopping:
            raise BrokerAway("no connection to the broker")
        if self._messages >= self._max_messages or self._bytes + size > self._max_bytes:
            raise BrokerAway("too many messages wait for the broker")
        lane = self._lane_of(message)
        if self._session.leader(lane.partition) is None:
            self._session.refresh()
            raise BrokerAway("the partition has no leader")
        loop = asyncio.get_running_loop()
        entry = _Entry(message, size, loop.time() + self._seconds, loop.create_future())
        self._messages += 1
        self._bytes += size
        self._unacknowledged.append(entry)
        if self._watchdog is None:
            self._watchdog = loop.call_at(entry.deadline, self._check_deadlines)
        lane.waiting.append(entry)
        self._ready[lane] = None
        self._flush_soon(loop)
        return entry

    def _lane_of(self, message: Message) -> _Lane:
        lanes = self._routes.get(message.topic)
        if not lanes:
            raise BrokerAway(f"topic {message.topic} is not known")
        number = next(self._spread) if message.key is None else _hash_of(message.key)
        return lanes[number % len(lanes)]

    def _flush_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._flushing:
            self._flushing = True
            loop.create_task(self._flush())

    async def _flush(self) -> None:
        """Hand each idle node everything that waits for it. Nothing in here suspends, so lanes cannot change."""
        self._flushing = False
        session = self._session
        if session is None:
            return
        idle: list[tuple[int, _Lane]] = []
        for lane in self._ready:
            node = session.leader(lane.partition)
            # Without a leader it waits for the next metadata, at most until the deadline.
            if node is not None and not lane.sending and not self._busy[node]:
                idle.append((node, lane))
        for node, lane in idle:
            batch = session.producer.create_batch()
            while lane.waiting:
                entry = lane.waiting[0]
                if entry.alone and lane.sending:
                    break
                message = entry.message
                appended = batch.append(
                    timestamp=None, key=message.key, value=message.value, headers=list(message.headers)
                )
                if appended is None:
                    break
                lane.sending.append(lane.waiting.popleft())
                if entry.alone:
                    break
            if not lane.waiting:
                del self._ready[lane]
            try:
                acknowledged = await session.producer.send_batch(
                    batch, lane.partition.topic, partition=lane.partition.partition
                )
            except (KafkaError, AssertionError) as error:
                self._break(f"the producer refuses messages: {type(error).__name__}")
                return
            self._busy[node] += 1
            acknowledged.add_done_callback(
                lambda result, lane=lane, node=node: self._acknowledge(session, lane, node, result)
            )

    def _acknowledge(self, session: Session, lane: _Lane, node: int, result: asyncio.Future[Any]) -> None:
        error = None if result.cancelled() else result.exception()
        if session is not self._session:
            return
        if isinstance(error, REFUSALS):
            self._refuse(session, lane, error)
        elif error is not None or result.cancelled():
            self._break(f"the broker's answer breaks the producer: {type(error).__name__}")
            return
        elif result.result().offset < 0:
            # Stored by an earlier attempt, the broker no longer knows where: there is no receipt to give.
            self._break("the broker does not say where it stored a batch")
            return
        else:
            self._receipt(lane, result.result().offset)
        self._busy[node] -= 1
        while self._unacknowledged and self._unacknowledged[0].outcome.done():
            self._unacknowledged.popleft()
        if self._room:
            self._wake_waiters()
        if self._ready and not self._busy[node]:
            self._flush_soon(asyncio.get_running_loop())

    def _receipt(self, lane: _Lane, offset: int) -> None:
        sent, lane.sending = lane.sending, []
        self._last_ack = asyncio.get_running_loop().time()
        # One observation a batch, of the message that waited longest: one each would cost more than sending.
        metrics.PUBLISH_SECONDS.labels(lane.partition.topic).observe(self._last_ack - sent[0].deadline + self._seconds)
        for number, entry in enumerate(sent):
            self._settle(entry, Receipt(lane.partition.partition, offset + number))

    def _refuse(self, session: Session, lane: _Lane, error: BaseException) -> None:
        """The broker took nothing of a batch: refuse its only message, or send each alone to find the culprit."""
        sent, lane.sending = lane.sending, []
        session.take_back(lane.partition, len(sent))
        if len(sent) == 1:
            self._settle(sent[0], MessageRefused(f"the broker refuses the message: {type(error).__name__}"))
            return
        for entry in sent:
            entry.alone = True
        lane.waiting.extendleft(reversed(sent))
        self._ready[lane] = None

    def _settle(self, entry: _Entry, outcome: Outcome) -> None:
        self._messages -= 1
        self._bytes -= entry.size
        if not entry.outcome.done():
            entry.outcome.set_result(outcome)

    def _check_deadlines(self) -> None:
        self._watchdog = None
        loop = asyncio.get_running_loop()
        waiting = self._unacknowledged
        while waiting and waiting[0].outcome.done():
            waiting.popleft()
        if not waiting:
            return
        if waiting[0].deadline <= loop.time():
            self._break(f"a message was not acknowledged within {self._seconds} s")
        else:
            self._watchdog = loop.call_at(waiting[0].deadline, self._check_deadlines)

    def _break(self, reason: str) -> None:
        """Give the producer up: answer everything outstanding and let the keeper build another one."""
        session, self._session = self._session, None
        if session is None:
            return
        session.abort()
        self._aborted.append(session)
        self._breaks += 1
        if self._watchdog is not None:
            self._watchdog.cancel()
        lost = [entry for lane in self._lanes.values() for entry in (*lane.sending, *lane.waiting)]
        for entry in lost:
            self._settle(entry, BrokerAway(reason))
        metrics.BROKER_AVAILABLE.set(0)
        if not self._stopping:
            metrics.PRODUCER_REBUILDS.inc()
            _log.warning("producer-given-up", reason=reason, unanswered=len(lost))
        room = self._room
        self._forget()
        self._room = room
        self._wake_waiters()
        self._broken.set()

    def _wake_waiters(self) -> None:
        room, self._room = self._room, []
        for waiter in room:
            if not waiter.done():
                waiter.set_result(None)

    async def _await_room(self) -> None:
        """Return at once below half of the bounds (the other half is for single messages), else wait for it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._seconds
        while self._messages * 2 >= self._max_messages or self._bytes * 2 >= self._max_bytes:
            waiter = loop.create_future()
            self._room.append(waiter)
            try:
                async with asyncio.timeout_at(until):
                    await waiter
            except TimeoutError:
                raise BrokerAway("too many messages wait for the broker") from None

    async def _learn(self, topic: str) -> None:
        session = self._session
        if session is None:
            raise BrokerAway("no connection to the broker")
        self._known_topics.add(topic)
        try:
            async with asyncio.timeout(self._seconds):
                await session.learn(topic)
        except (KafkaError, TimeoutError) as error:
            self._known_topics.discard(topic)
            raise BrokerAway(f"topic {topic} is not known") from error
        if session is self._session:
            self._map_routes()

    def _map_routes(self, *_: object) -> None:
        """Follow the cluster's metadata: which partitions a topic has, and who leads them."""
        session = self._session
        if session is None:
            return
        for topic in self._known_topics:
            partitions = session.partitions(topic)
            if partitions and len(partitions) != len(self._routes.get(topic, ())):
                self._routes[topic] = [self._lanes.setdefault(key, _Lane(key)) for key in partitions]
        if self._ready:
            self._flush_soon(asyncio.get_running_loop())

    async def _keep(self) -> None:
        """Have a producer whenever there is a broker: build, watch, and build again."""
        loop = asyncio.get_running_loop()
        while not cancelled():
            try:
                session = await Session.open(
                    self._bootstrap,
                    client_id=self._client_id,
                    topics=sorted(self._known_topics),
                    within=_CONNECT_WITHIN,
                )
            except (KafkaError, OSError, TimeoutError) as error:
                if not self._attempted.is_set():
                    _log.warning("broker-away", error=type(error).__name__)
                self._attempted.set()
                await asyncio.sleep(_REBUILD_PAUSE.total_seconds())
                continue
            built = loop.time()
            self._broken.clear()
            self._session = session
            session.on_metadata(self._map_routes)
            self._map_routes()
            self._attempted.set()
            metrics.BROKER_AVAILABLE.set(1)
            _log.info("producer-ready", rebuilds=self._breaks)
            await self._watch(session)
            await session.closed()
            # A producer that breaks as soon as it is built must not be rebuilt in a tight loop.
            if loop.time() - built < _REBUILD_PAUSE.total_seconds():
                await asyncio.sleep(_REBUILD_PAUSE.total_seconds())

    async def _watch(self, session: Session) -> None:
        """Return when the producer was given up; give it up when its sender dies or an idle broker is silent."""
        loop = asyncio.get_running_loop()
        broken = loop.create_task(self._broken.wait())
        try:
            while self._session is session:
                await asyncio.wait(
                    {session.sender, broken},
                    timeout=_PROBE_AFTER.total_seconds(),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if self._session is not session:
                    return
                if session.failed:
                    self._break("its sender died")
                elif loop.time() - self._last_ack >= _PROBE_AFTER.total_seconds():
                    answers = await session.alive(min(self._deadline, _CONNECT_WITHIN))
                    if not answers and self._session is session:
                        self._break("the broker does not answer")
        finally:
            broken.cancel()
