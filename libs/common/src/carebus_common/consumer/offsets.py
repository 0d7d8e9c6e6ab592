"""The owned partitions' low-water marks, and their way to the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError

from carebus_common.consumer.change import Position
from carebus_common.consumer.watermark import LowWaterMark
from carebus_common.failpoints import failpoint
from carebus_common.logging import get_logger

__all__ = ["Offsets"]

log = get_logger(__name__)

_PATIENCE_SECONDS = 60.0
_ANSWER_SECONDS = 2.0


class Offsets:
    """Which records of the owned partitions are done, and how far the group's offsets may be committed."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._marks: dict[int, LowWaterMark] = {}
        # Where the partitions stood when they were assigned, as far as that is known, and when that was.
        self._starts: dict[int, int] = {}
        self._owned_at: dict[int, float] = {}
        self.consumer: AIOKafkaConsumer | None = None

    @property
    def partitions(self) -> tuple[int, ...]:
        return tuple(sorted(self._marks))

    @property
    def in_flight(self) -> int:
        """Records taken and not done."""
        return sum(mark.in_flight for mark in self._marks.values())

    def own(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._marks[partition] = LowWaterMark()
            self._owned_at[partition] = asyncio.get_running_loop().time()
            self._starts.pop(partition, None)

    async def learn_starts(self) -> None:
        """Ask the group where newly owned partitions stand; again next time, if the broker is away."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                for partition in self._marks.keys() - self._starts.keys():
                    self._starts[partition] = await self.committed(partition) or 0
        except (KafkaError, TimeoutError) as error:
            log.info("committed-unknown", topic=self._topic, error=type(error).__name__)

    def reached(self, position: Position) -> bool:
        """Whether all records before this one were taken, here or by an earlier owner who was done with them.

        Nobody waits for that longer than a minute: the log may not have them any more.
        """
        mark = self._marks.get(position.partition)
        if mark is None or position.topic != self._topic:
            return True
        if max(mark.next, self._starts.get(position.partition, 0)) >= position.offset:
            return True
        return asyncio.get_running_loop().time() - self._owned_at[position.partition] > _PATIENCE_SECONDS

    def take(self, partition: int, offset: int) -> bool:
        """Note a fetched record; False if its partition is not owned any more. Raises `WentBackwards`."""
        mark = self._marks.get(partition)
        if mark is None:
            return False
        mark.take(offset)
        return True

    def done(self, partition: int, offset: int) -> None:
        if (mark := self._marks.get(partition)) is not None:
            mark.done(offset)

    async def commit(self) -> None:
        """Commit what has moved. A refusal is no error: what is redelivered is recognized by its inbox row."""
        await self._commit(self._marks)

    async def give_up(self, partitions: Iterable[int]) -> None:
        """Commit these partitions' marks for their next owner and forget them."""
        marks = {partition: self._marks.pop(partition) for partition in partitions if partition in self._marks}
        await self._commit(marks)

    async def _commit(self, marks: dict[int, LowWaterMark]) -> None:
        moved = {
            partition: (mark, position)
            for partition, mark in marks.items()
            if (position := mark.position()) is not None and position != mark.committed
        }
        if not moved or self.consumer is None:
            return
        try:
            failpoint("before-offset-commit")
            await self.consumer.commit({TopicPartition(self._topic, p): offset for p, (_, offset) in moved.items()})
            failpoint("after-offset-commit")
        except KafkaError as error:
            # Refused to a zombie, or the broker is away.
            log.info("offset-commit-failed", topic=self._topic, error=type(error).__name__)
            return
        for mark, position in moved.values():
            mark.committed = position

    async def committed(self, partition: int) -> int | None:
        """The group's committed offset, None before the first; raises KafkaError while the broker is away."""
        if self.consumer is None:
            raise KafkaConnectionError("not connected yet")
        offset: int | None = await self.consumer.committed(TopicPartition(self._topic, partition))
        return offset
