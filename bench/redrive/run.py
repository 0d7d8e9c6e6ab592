"""How fast dead letters are redriven: `python bench/redrive/run.py [DEAD_LETTERS [PROCESSORS]] [--kill]`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from aiokafka.partitioner import murmur2

from carebus_common import mongo
from carebus_common.consumer.failure import describe
from carebus_common.consumer.lanes import Record
from carebus_common.consumer.letters import Tries, letter_document
from carebus_common.consumer.records import read_queued
from carebus_common.consumer.rows import ParkedPatient, new_token, queue_id
from carebus_common.contracts.event import MedicalEvent, encode
from carebus_common.contracts.topics import EVENTS
from carebus_common.settings import MongoSettings
from carebus_local.system import System, running
from carebus_processor.settings import Settings
from carebus_processor.subscribers import subscription

ORGANIZATION = "bench"
IDS = UUID("0198c0de-0000-7000-8000-000000000000")
BATCH = 1000
CAREBUS = Path(sys.executable).with_name("carebus")


async def main(letters: int, processors: int, *, kill: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="carebus-bench-") as name:
        state_dir = Path(name)
        async with running(state_dir, processors=processors, log_format="json") as system:
            client = mongo.connect(MongoSettings(mongo_url=system.parts.mongo_url), app_name="bench")
            database = client["carebus_processor"]
            began = time.perf_counter()
            await park(database, letters)
            print(f"parked {letters:,} patients in {time.perf_counter() - began:.0f} s", file=sys.stderr)
            began = time.perf_counter()
            if kill:
                await redrive(state_dir, system, database, stop_at=letters // 2)
            await redrive(state_dir, system, database, stop_at=None)
            await settled(database)
            seconds = time.perf_counter() - began
            print(f"{letters:,} dead letters redriven in {seconds:.1f} s: {letters / seconds:.0f}/s")
            await check(database, letters)
            await client.close()


def patients(letters: int) -> Iterator[tuple[str, list[MedicalEvent]]]:
    now = datetime.now(UTC)
    for n in range(letters):
        patient_id = f"patient-{n}"
        events = [
            MedicalEvent(
                event_id=uuid5(IDS, f"{n}/{place}"),
                organization_id=ORGANIZATION,
                patient_id=patient_id,
                type="note",
                ts=now,
                received_at=now,
                data={"text": "x" * 300, "place": place},
            )
            for place in range(3 if n % 10 == 0 else 1)
        ]
        yield patient_id, events


async def park(database: mongo.Database, letters: int) -> None:
    """As the runtime parks: the first event is a dead letter, the others wait in the queue."""
    what = subscription(Settings(jwks="-"))
    now = datetime.now(UTC)
    failure = describe(ValueError(), None, what.group)
    rows: dict[str, list[dict[str, Any]]] = {}
    for offset, (patient_id, events) in enumerate(patients(letters)):
        row_id, partition = (
            f"{ORGANIZATION}/{patient_id}",
            (murmur2(patient_id.encode()) & 0x7FFFFFFF) % EVENTS.partitions,
        )
        # Far above any offset of the live topic, which is empty.
        stored = [stored_record(event, partition, 10 * offset + place) for place, event in enumerate(events)]
        head: Record[MedicalEvent] = read_queued(what, stored[0], 0)
        letter = letter_document(head, ORGANIZATION, "permanent", failure, Tries(1, now, now), blocking=True, now=now)
        token = new_token()
        patient = ParkedPatient(
            row_id,
            ORGANIZATION,
            patient_id,
            EVENTS.name,
            partition,
            "dead-lettered",
            now,
            token,
            dead_letter=letter["_id"],
        )
        first, tail = stored[0]["source"], stored[-1]["source"]
        parked = {"head": 0, "next": len(stored) - 1, "first": first, "tail": tail, "token": token}
        add(rows, "dead_letters", {**letter, "publishedAt": now})
        add(rows, "parked_patients", patient.document())
        add(
            rows,
            "patients",
            {
                "_id": row_id,
                "organizationId": ORGANIZATION,
                "patientId": patient_id,
                "position": None,
                "parked": parked,
                "state": None,
            },
        )
        for number, row in enumerate(stored[1:]):
            add(rows, "parked_events", {**row, "_id": queue_id(row_id, number), "parkedAt": now})
        if offset % BATCH == BATCH - 1:
            await write(database, rows)
    await write(database, rows)


def stored_record(event: MedicalEvent, partition: int, offset: int) -> dict[str, Any]:
    return {
        "organizationId": event.organization_id,
        "patientId": event.patient_id,
        "eventId": str(event.event_id),
        "type": event.type,
        "source": {"topic": EVENTS.name, "partition": partition, "offset": offset},
        "key": event.patient_id.encode(),
        "value": encode(event),
        "headers": [["organizationId", event.organization_id.encode()]],
        "timestamp": 0,
    }


def add(rows: dict[str, list[dict[str, Any]]], collection: str, row: dict[str, Any]) -> None:
    rows.setdefault(collection, []).append(row)


async def write(database: mongo.Database, rows: dict[str, list[dict[str, Any]]]) -> None:
    for collection, documents in rows.items():
        if documents:
            await database[collection].insert_many(documents, ordered=False)
            documents.clear()


async def redrive(state_dir: Path, system: System, database: mongo.Database, *, stop_at: int | None) -> None:
    """Run the command to its end, or kill it and all processors once `stop_at` dead letters are redriven."""
    command = [str(CAREBUS), "dlq", "redrive", "--all", "--yes", "--reason", "bench", "--rate", "5000"]
    process = await asyncio.create_subprocess_exec(*command, "--state-dir", str(state_dir), stdout=sys.stderr)
    ended = asyncio.create_task(process.wait())
    while not ended.done():
        await asyncio.wait([ended], timeout=1)
        if stop_at is not None and await database["dead_letters"].count_documents({"status": "redriven"}) >= stop_at:
            print("killing the command and every processor", file=sys.stderr)
            process.kill()
            for status in system.status():
                if status.name.startswith("processor") and status.pid is not None:
                    os.kill(status.pid, signal.SIGKILL)
            await ended
            return
    if ended.result():
        raise SystemExit(f"the command ended with {ended.result()}")


async def settled(database: mongo.Database) -> None:
    async with asyncio.timeout(600):
        while await database["parked_patients"].find_one({}, {"_id": 1}) is not None:
            await asyncio.sleep(0.1)


async def check(database: mongo.Database, letters: int) -> None:
    wrong = 0
    applied: dict[str, list[tuple[int, str]]] = {}
    async for row in database["processed_events"].find({}, {"patientId": 1, "eventId": 1, "source": 1, "messages": 1}):
        applied.setdefault(row["patientId"], []).append((row["source"]["offset"], row["eventId"]))
    states = {
        row["patientId"]: row async for row in database["patients"].find({}, {"patientId": 1, "state": 1, "parked": 1})
    }
    for patient_id, events in patients(letters):
        row = states[patient_id]
        as_sent = [str(event.event_id) for event in events]
        ids = [event_id for _, event_id in sorted(applied.get(patient_id, []))]
        wrong += ids != as_sent or row["parked"] is not False or row["state"]["events"] != len(events)
    statuses = await (
        await database["dead_letters"].aggregate(
            [{"$group": {"_id": ["$status", "$outcome.status"], "n": {"$sum": 1}}}]
        )
    ).to_list()
    print(json.dumps({str(row["_id"]): row["n"] for row in statuses}))
    if wrong:
        raise SystemExit(f"{wrong} patients are not as they should be")


if __name__ == "__main__":
    _numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    asyncio.run(main(*(_numbers + [100_000, 1][len(_numbers) :]), kill="--kill" in sys.argv))
