"""The newest records of a topic, for an operator to look at: read without a group, so that nobody's offsets move."""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient

from carebus_common.logging import patient_hash
from carebus_common.ops.lag import partitions_of
from carebus_common.ops.masking import masked_payload, parsed, text_of

__all__ = ["Tail", "read_tail", "tail_record"]

# How long one call reads.
_SECONDS: Final = 3.0
# A value beyond this is not looked into, nor are values of a page that are beyond this together.
_MAX_VALUE: Final = 64 * 1024
_MAX_PAGE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tail:
    """Records, oldest first, and where each partition goes on."""

    records: list[dict[str, Any]]
    positions: dict[int, int]


async def read_tail(bootstrap: str, topic: str, *, limit: int, after: Mapping[int, int] | None) -> Tail | None:
    """The topic's newest `limit` records, or the next `limit` at the positions `after`; None for an unknown topic.

    Raises KafkaError, and TimeoutError if the broker does not answer in time.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        # What retention took while somebody looked on is passed over.
        auto_offset_reset="earliest",
        request_timeout_ms=5000,
        fetch_max_wait_ms=50,
        max_partition_fetch_bytes=1024 * 1024,
    )
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=5000)
    try:
        await consumer.start()
        await admin.start()
        partitions = await partitions_of(admin, topic)
        if not partitions:
            return None
        consumer.assign(partitions)
        begins = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        positions: dict[int, int] = {}
        for partition in partitions:
            begin, end = begins[partition], ends[partition]
            start = end - limit if after is None else after.get(partition.partition, begin)
            positions[partition.partition] = min(max(start, begin), end)
            consumer.seek(partition, positions[partition.partition])
        goals = {partition.partition: ends[partition] for partition in partitions}
        return await _read(consumer, positions, goals, limit, newest=after is None)
    finally:
        await consumer.stop()
        await admin.close()


async def _read(
    consumer: AIOKafkaConsumer, positions: dict[int, int], goals: Mapping[int, int], limit: int, *, newest: bool
) -> Tail:
    """Read up to `goals`; of many records the `newest`, else the first, `limit` are kept."""
    kept: list[tuple[int, int, int, ConsumerRecord]] = []
    numbers = count()
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until and any(positions[p] < goal for p, goal in goals.items()):
        room = None if newest else limit - len(kept)
        if room == 0:
            break
        for partition, records in (await consumer.getmany(timeout_ms=200, max_records=room)).items():
            for record in records:
                positions[partition.partition] = record.offset + 1
                size = len(record.value or b"")
                light = record if size <= _MAX_VALUE else replace(record, value=None)
                entry = (record.timestamp, next(numbers), size, light)
                if newest and len(kept) == limit:
                    heapq.heappushpop(kept, entry)
                else:
                    heapq.heappush(kept, entry)
    shown: list[dict[str, Any]] = []
    room_left = _MAX_PAGE
    for _, _, size, record in sorted(kept, key=lambda entry: entry[:2], reverse=True):
        looks = size <= min(_MAX_VALUE, room_left)
        room_left -= size if looks else 0
        shown.append(tail_record(record, size, looks=looks))
    return Tail(shown[::-1], positions)


def tail_record(record: ConsumerRecord, size: int, *, looks: bool) -> dict[str, Any]:
    """What is shown of a record: where it is, whose it is, and its payload masked (None if it is not looked into)."""
    headers = {name: text_of(content) for name, content in record.headers}
    value = parsed(record.value) if looks else None
    event = value if isinstance(value, dict) else {}
    organization_id = headers.get("organizationId") or _text(event.get("organizationId"))
    patient_id = text_of(record.key)
    dlq = {name.removeprefix("dlq."): content for name, content in headers.items() if name.startswith("dlq.")}
    return {
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "organizationId": organization_id,
        "type": headers.get("ce_type") or _text(event.get("type")),
        "eventId": headers.get("ce_id") or _text(event.get("eventId")),
        "patient": None if patient_id is None else patient_hash(organization_id or "", patient_id),
        "dlq": dlq or None,
        "payload": masked_payload(record.value) if looks else None,
        "payloadBytes": size,
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
