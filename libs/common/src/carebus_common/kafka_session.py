"""One idempotent producer, from its connection to its end: the only module that knows aiokafka's insides.

`AIOKafkaProducer.stop` waits until everything buffered is sent, however late. A publisher that has told its
caller "not stored" must not send after that, so `Session.abort` ends a producer at once: its sender and its
requests are cancelled and its sockets reset, so that nothing but what the broker's own receive buffer already
holds can still be stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerClosed,
    RecordListTooLargeError,
)

__all__ = ["MAX_BATCH_BYTES", "REFUSALS", "Session"]

# Half of the topics' max.message.bytes, which the broker applies to a batch. A larger message has a batch to itself.
MAX_BATCH_BYTES: Final = 512 * 1024
# The broker will never take this message; every other error leaves the producer's sequence numbers in doubt.
REFUSALS: Final = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidTimestampError)

_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Session:
    """A connected producer with a producer id of its own. Make one with `Session.open`."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self.producer = producer
        self._requests: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None
        send = producer._sender._send_produce_req

        async def tracked(node_id: int, batches: dict[TopicPartition, Any]) -> None:
            request = asyncio.current_task()
            if request is None or self._closing is not None:
                return
            self._requests.add(request)
            try:
                await send(node_id, batches)
            finally:
                self._requests.discard(request)

        producer._sender._send_produce_req = tracked

    @classmethod
    async def open(cls, bootstrap: str, *, client_id: str, topics: Sequence[str], within: timedelta) -> Session:
        """Connect and get a producer id `within` that time; raises `KafkaError`, `OSError` or `TimeoutError`.

        `topics` are looked up too, but one that does not exist is no reason to be without a producer.
        """
        session = cls(
            AIOKafkaProducer(
                bootstrap_servers=bootstrap,
                client_id=client_id,
                acks="all",
                enable_idempotence=True,
                max_batch_size=MAX_BATCH_BYTES,
                # aiokafka's own expiry would let a later message overtake an expired one of the same key, so
                # it must never strike: the publisher's deadline is far shorter.
                request_timeout_ms=60_000,
                retry_backoff_ms=100,
                metadata_max_age_ms=30_000,
            )
        )
        try:
            async with asyncio.timeout(within.total_seconds()):
                await session.producer.start()
            with contextlib.suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(within.total_seconds()):
                    for topic in topics:
                        await session.learn(topic)
        except BaseException:
            session.abort()
            await session.closed()
            raise
        return session

    @property
    def failed(self) -> bool:
        """Whether the sender died, so that nothing handed over will ever be sent."""
        task = self.producer._sender.sender_task
        return task is None or task.done()

    @property
    def sender(self) -> asyncio.Task[None]:
        """The sender's task; it ends only with the session or by a fatal error."""
        task: asyncio.Task[None] = self.producer._sender.sender_task
        return task

    def partitions(self, topic: str) -> list[TopicPartition]:
        """The topic's partitions in order; empty while the topic is not known."""
        numbers = self.producer.client.cluster.partitions_for_topic(topic) or ()
        return [TopicPartition(topic, number) for number in sorted(numbers)]

    def leader(self, partition: TopicPartition) -> int | None:
        """The node that leads `partition`, or None while nobody does or the topic is not known."""
        node: int | None = self.producer.client.cluster.leader_for_partition(partition)
        return None if node == -1 else node

    async def learn(self, topic: str) -> None:
        """Wait until every partition of `topic` has a leader; raises `KafkaError` where that cannot be."""
        await self.producer.partitions_for(topic)
        while any(self.leader(partition) is None for partition in self.partitions(topic)):
            await asyncio.sleep(0.05)
            await self.producer.client.force_metadata_update()

    def refresh(self) -> None:
        """Ask for the cluster's metadata in the background."""
        self.producer.client.force_metadata_update()

    def on_metadata(self, listener: Callable[[object], None]) -> None:
        """Have `listener` called whenever the cluster's metadata was renewed."""
        self.producer.client.cluster.add_listener(listener)

    async def alive(self, within: timedelta) -> bool:
        """Whether a broker answers a metadata request within that time."""
        try:
            async with asyncio.timeout(within.total_seconds()):
                return bool(await self.producer.client.force_metadata_update())
        except (KafkaError, OSError, TimeoutError):
            return False

    def take_back(self, partition: TopicPartition, count: int) -> None:
        """Reuse the sequence numbers of a refused batch of `count` messages, the partition's last.

        The broker did not advance over a batch it refused; aiokafka did, and without this every later batch
        of the partition would be out of sequence.
        """
        self.producer._txn_manager.increment_sequence_number(partition, -count)

    def abort(self) -> None:
        """End at once; nothing more is handed to a socket once this returns. Then await `closed`."""
        if self._closing is not None:
            return
        for conn in self.producer.client._conns.values():
            if conn._writer is not None:
                transport = conn._writer.transport
                # Whatever keeps the option from being set on a socket that is closing, it is aborted.
                with contextlib.suppress(Exception):
                    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                transport.abort()
        for request in self._requests:
            request.cancel()
        if self.producer._sender.sender_task is not None:
            self.producer._sender.sender_task.cancel()
        self._closing = asyncio.get_running_loop().create_task(self._close())

    async def closed(self) -> None:
        """Wait until the connections of an aborted session are gone."""
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        producer = self.producer
        sender: asyncio.Task[None] | None = producer._sender.sender_task
        if sender is not None:
            await asyncio.wait({sender})
            if not sender.cancelled():
                sender.exception()
        # Resolves what is left in the accumulator, for which `stop` would otherwise wait.
        producer._message_accumulator.fail_all(ProducerClosed())
        with contextlib.suppress(Exception):
            await producer.stop()
        for conn in producer.client._conns.values():
            conn.close()
