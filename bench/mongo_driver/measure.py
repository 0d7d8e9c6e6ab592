"""One driver, one round: prints a JSON object of {operation: {"perSecond", "clientCpuMicros"}}.

    python measure.py {pymongo|motor} MONGO_URL CALLS

`clientCpuMicros` is the CPU time of this process per document or call. It holds still on a busy machine, which
throughput does not, and it is the part that the driver decides.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import uuid4

import uvloop

BATCHES, BATCH = 5, 1000
READS = 10
AT_ONCE = (1, 8, 32)


def client_of(driver: str, url: str) -> Any:
    if driver == "pymongo":
        from pymongo import AsyncMongoClient  # noqa: PLC0415

        return AsyncMongoClient(url)
    from motor.motor_asyncio import AsyncIOMotorClient  # type: ignore[import-not-found]  # noqa: PLC0415

    return AsyncIOMotorClient(url)


def document(number: int) -> dict[str, Any]:
    """About the size and shape of a row of `processed_events`."""
    return {
        "_id": f"org/{number:08d}",
        "organizationId": "org",
        "patientId": f"patient-{number % 500}",
        "type": "vital-signs",
        "data": {"heartRate": 71, "systolic": 118, "diastolic": 76, "note": "x" * 200},
        "source": {"topic": "medical.events.v1", "partition": number % 12, "offset": number},
    }


async def timed(times: int, work: Callable[[], Awaitable[None]]) -> dict[str, float]:
    began, cpu = time.perf_counter(), time.process_time()
    await work()
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"perSecond": times / spent, "clientCpuMicros": cpu / times * 1e6}


async def main(driver: str, url: str, calls: int) -> None:
    client = client_of(driver, url)
    database = client[f"bench_{uuid4().hex}"]
    rows = database["rows"]

    async def insert_many() -> None:
        for batch in range(BATCHES):
            await rows.insert_many([document(batch * BATCH + number) for number in range(BATCH)])

    async def find() -> None:
        for _ in range(READS):
            async for _row in rows.find({}, batch_size=BATCH).limit(BATCH):
                pass

    async def find_one(turn: int) -> None:
        await rows.find_one({"_id": f"org/{turn:08d}"})

    async def update_one(turn: int) -> None:
        await rows.update_one({"_id": f"org/{turn:08d}"}, {"$set": {"seen": time.time()}})

    async def concurrently(call: Callable[[int], Awaitable[None]], at_once: int) -> None:
        turns = iter(range(calls))

        async def worker() -> None:
            for turn in turns:
                await call(turn)

        await asyncio.gather(*(worker() for _ in range(at_once)))

    await database["warm"].insert_one({})
    figures = {
        f"`insert_many`, {BATCH} documents a call (per document)": await timed(BATCHES * BATCH, insert_many),
        f"`find`, {BATCH} documents a call (per document)": await timed(READS * BATCH, find),
    }
    for call in (find_one, update_one):
        for at_once in AT_ONCE:
            figures[f"`{call.__name__}`, {at_once} at once (per call)"] = await timed(
                calls, partial(concurrently, call, at_once)
            )
    await client.drop_database(database.name)
    print(json.dumps(figures))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
