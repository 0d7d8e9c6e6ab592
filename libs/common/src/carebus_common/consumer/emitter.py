"""Publishes what transactions committed, in the order of the commits, and says when it is out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from carebus_common.cancellation import cancelled
from carebus_common.consumer.change import PatientEvent
from carebus_common.consumer.plan import Settled
from carebus_common.failpoints import failpoint
from carebus_common.kafka import BrokerAway, MessageRefused
from carebus_common.logging import get_logger
from carebus_common.messages import Message, Receipt

__all__ = ["Emitter", "Publishes"]

E = TypeVar("E", bound=PatientEvent)
log = get_logger(__name__)

_BATCH = 2000
_RETRY_SECONDS = 0.5


class Publishes(Protocol):
    async def publish_each(self, messages: Sequence[Message]) -> Sequence[Receipt | BrokerAway | MessageRefused]: ...


class Emitter(Generic[E]):
    """One group of messages at a time: a later one never starts before the earlier one is acknowledged.

    When the broker does not acknowledge a group, the whole group is published again, in order: its messages
    carry the same ids, and a message is never on the topic before the one it follows.
    """

    def __init__(self, publisher: Publishes, done: Callable[[Sequence[Settled[E]]], None]) -> None:
        self._publisher = publisher
        self._done = done
        self._queue: deque[Settled[E]] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.broker_away = False

    def put(self, settled: Sequence[Settled[E]]) -> None:
        if settled:
            self._queue.extend(settled)
            self._idle.clear()
            self._wake.set()

    async def idle(self) -> None:
        """Wait until all that was put is out."""
        await self._idle.wait()

    async def run(self) -> None:
        while not cancelled():
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                group = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
                failpoint("before-emit")
                refused = await self._publish([message for settled in group for message in settled.messages])
                failpoint("after-emit")
                if refused:
                    group = list(self._without(refused, group))
                self._done(group)
            self._idle.set()

    @staticmethod
    def _without(refused: set[int], group: Sequence[Settled[E]]) -> Iterator[Settled[E]]:
        """What is done although the broker refused messages of the group.

        A dead letter is in the store all the same, and stays unpublished there. Anything else was never
        acknowledged and so is never skipped: the low-water mark stays below such a record.
        """
        for settled in group:
            if refused.isdisjoint(map(id, settled.messages)):
                yield settled
            elif settled.letter is not None:
                yield replace(settled, letter=None)

    async def _publish(self, messages: list[Message]) -> set[int]:
        """Publish until the broker has acknowledged all; the ids (`id()`) of those it refuses for what they are."""
        while messages:
            results = await self._publisher.publish_each(messages)
            if not any(isinstance(result, BrokerAway) for result in results):
                self.broker_away = False
                refused = {
                    id(message)
                    for message, result in zip(messages, results, strict=True)
                    if isinstance(result, MessageRefused)
                }
                if refused:
                    log.error("messages-refused", count=len(refused), topic=messages[0].topic)
                return refused
            if not self.broker_away:
                self.broker_away = True
                log.warning("emit-waits-for-broker", messages=len(messages))
            await asyncio.sleep(_RETRY_SECONDS)
        return set()
