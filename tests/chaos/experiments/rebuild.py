"""Experiment 15: the read models are dropped and rebuilt from the log."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import bson
from aiokafka import AIOKafkaConsumer
from pymongo.asynchronous.collection import AsyncCollection

from carebus_common.contracts.topics import EVENTS_PROCESSED

from ..harness import Chaos, expect
from .storm import mixed

__all__ = ["rebuild"]

_GROUP = "carebus-claims"
# When and where it was handled, which is not what it says.
_OF_THE_HANDLING = frozenset({"processedAt", "processingDurationMs", "createdAt", "updatedAt"})


async def rebuild(chaos: Chaos) -> Mapping[str, Any]:
    """Claims' histories and summaries, of all that ran on this system, have the same content after a rebuild."""
    patients = chaos.scaled(2000, 200)
    sender = chaos.sender()
    await sender.send([f"p{n}" for n in range(patients)], mixed(sender, each=10, failing=0), rate=1000, duplicates=0.05)
    await chaos.drained(within=120)
    await chaos.verdict(sender)
    before = await _content(chaos)
    await chaos.system.supervisor.stop("claims")
    for name in ("patient_histories", "patients"):
        await _empty(chaos.reader.claims[name])
    await _to_the_beginning(chaos)
    expect((await chaos.reader.lag())[_GROUP] > 0, "the group begins anew")
    await chaos.system.supervisor.start_again("claims")
    took = await chaos.drained(within=600)
    after = await _content(chaos)
    expect(before == after, f"the rebuilt content differs: {before} became {after}")
    await chaos.verdict(sender)
    (rows, _), (summaries, _) = after["patient_histories"], after["patients"]
    return {
        "rows": rows,
        "patients": summaries,
        "rebuilt in seconds": round(took, 1),
        "rows a second": round(rows / took),
    }


async def _empty(rows: AsyncCollection[dict[str, Any]]) -> None:
    """Delete everything, in pieces: the embedded store may take minutes to drop a collection that is in use."""
    for organization in await rows.distinct("organizationId"):
        await rows.delete_many({"organizationId": organization})


async def _to_the_beginning(chaos: Chaos) -> None:
    """Commit the group's offsets as they were before any; it has no member now."""
    ends = await chaos.reader.ends(EVENTS_PROCESSED.name)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=chaos.system.parts.kafka_bootstrap, group_id=_GROUP, enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign(list(ends))
        await consumer.commit(dict.fromkeys(ends, 0))
    finally:
        await consumer.stop()


async def _content(chaos: Chaos) -> dict[str, tuple[int, str]]:
    return {name: await _hash(chaos.reader.claims[name]) for name in ("patient_histories", "patients")}


async def _hash(rows: AsyncCollection[dict[str, Any]]) -> tuple[int, str]:
    """How many rows there are, and a hash of their content whatever their order."""
    count, total = 0, 0
    async for row in rows.find():
        content = bson.encode({name: row[name] for name in sorted(row) if name not in _OF_THE_HANDLING})
        total = (total + int.from_bytes(blake2b(content, digest_size=16).digest())) % 2**128
        count += 1
    return count, f"{total:032x}"
