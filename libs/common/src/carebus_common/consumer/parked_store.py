"""What the owner reads of parked patients and dead letters, and the few writes that need no transaction.

`dead_letter_requests` holds what was asked for: `{_id, topic, partition, action: redrive | discard, deadLetterIds, by,
reason, requestedAt, run}`; `run` is null or a UUID by which whoever asked finds its outcomes. `consumers` has one row a
group: `{_id: group, paused, failures, version}`. `interrupted_events` counts how often a process died with an event in
its handler: `{_id: "topic-partition-offset", deaths}`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pymongo import UpdateOne
from pymongo.errors import DuplicateKeyError

from carebus_common.consumer.change import Position
from carebus_common.consumer.letters import letter_id
from carebus_common.consumer.rows import ParkedPatient
from carebus_common.consumer.store import Store, chunks, translated

__all__ = ["ControlRow", "ParkedStore", "Request", "asked_of"]

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asked the owner of a partition to do with dead letters."""

    id: str
    partition: int
    action: Literal["redrive", "discard"]
    letter_ids: tuple[str, ...]
    asked: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ControlRow:
    """A group's row: why it is paused, if it is, and its failures so far."""

    version: int
    paused: Mapping[str, Any] | None
    failures: Mapping[str, Any] | None


class ParkedStore:
    """Every method raises `StoreAway`."""

    def __init__(self, store: Store) -> None:
        database = store.database
        self._parked_patients = store.parked_patients
        self._parked_events = store.parked_events
        self._dead_letters = store.dead_letters
        self._requests = database["dead_letter_requests"]
        self._consumers = database["consumers"]
        self._interrupted = database["interrupted_events"]

    async def active(self, topic: str, partitions: Collection[int]) -> list[ParkedPatient]:
        """The parked patients of these partitions with whom something happens without being asked for."""
        with translated():
            return [
                ParkedPatient.from_document(row)
                for status in ("retrying", "publishing")
                async for row in self._parked_patients.find({"status": status, "topic": topic})
                if row["partition"] in partitions
            ]

    async def parked_patients(self, row_ids: Sequence[str]) -> dict[str, ParkedPatient]:
        with translated():
            return {
                row["_id"]: ParkedPatient.from_document(row)
                for chunk in chunks(row_ids)
                async for row in self._parked_patients.find({"_id": {"$in": chunk}})
            }

    async def letters(self, letter_ids: Sequence[str]) -> dict[str, Document]:
        with translated():
            return {
                row["_id"]: row
                for chunk in chunks(letter_ids)
                async for row in self._dead_letters.find({"_id": {"$in": chunk}})
            }

    async def queue_rows(self, ids: Sequence[str]) -> dict[str, Document]:
        with translated():
            return {
                row["_id"]: row
                for chunk in chunks(ids)
                async for row in self._parked_events.find({"_id": {"$in": chunk}})
            }

    async def counts(self) -> tuple[int, int]:
        """Parked patients and parked events, of all partitions; as the store estimates them."""
        with translated():
            return (
                await self._parked_patients.estimated_document_count(),
                await self._parked_events.estimated_document_count(),
            )

    async def requests(self, topic: str, partitions: Collection[int], limit: int) -> list[Request]:
        """What was asked for in these partitions: at most `limit` requests, the oldest of them first."""
        wanted = {"topic": topic, "partition": {"$in": list(partitions)}}
        with translated():
            rows = [row async for row in self._requests.find(wanted).limit(limit)]
        rows.sort(key=lambda row: row["requestedAt"])
        return [
            Request(
                row["_id"],
                row["partition"],
                row["action"],
                tuple(row["deadLetterIds"]),
                asked_of(row),
            )
            for row in rows
        ]

    async def requests_done(self, ids: Sequence[str]) -> None:
        with translated():
            for chunk in chunks(ids):
                await self._requests.delete_many({"_id": {"$in": chunk}})

    async def letters_published(self, published: Iterable[tuple[str, str | None]], now: datetime) -> None:
        """Note that the broker has these dead letters: (letter id, its patient's row id if it blocks one).

        A patient whose letter was redriven meanwhile is left as it is.
        """
        letters, patients = [], []
        for letter, row_id in published:
            letters.append(UpdateOne({"_id": letter}, {"$set": {"publishedAt": now}}))
            if row_id is not None:
                mine = {"_id": row_id, "status": "publishing", "deadLetter": letter}
                patients.append(UpdateOne(mine, {"$set": {"status": "dead-lettered"}}))
        with translated():
            await self._dead_letters.bulk_write(letters, ordered=False)
            if patients:
                await self._parked_patients.bulk_write(patients, ordered=False)

    async def discard_unblocking(self, letter_ids: Sequence[str], asked: Mapping[str, Any], now: datetime) -> None:
        """Close dead letters that nobody waits for."""
        fields = {"status": "discarded", "discard": dict(asked), "outcome": _outcome("discarded", now)}
        with translated():
            await self._dead_letters.bulk_write(
                [UpdateOne({"_id": i, "status": "open", "blocking": False}, {"$set": fields}) for i in letter_ids],
                ordered=False,
            )

    async def control(self, group: str) -> ControlRow | None:
        with translated():
            row = await self._consumers.find_one({"_id": group})
        return None if row is None else ControlRow(row["version"], row["paused"], row["failures"])

    async def save_control(self, group: str, row: ControlRow) -> bool:
        """Write the group's row over the version before it; False if somebody else did meanwhile."""
        fields = {"paused": row.paused, "failures": row.failures, "version": row.version}
        with translated():
            if row.version == 1:
                try:
                    await self._consumers.insert_one({"_id": group, **fields})
                except DuplicateKeyError:
                    return False
                return True
            written = await self._consumers.update_one({"_id": group, "version": row.version - 1}, {"$set": fields})
            return written.matched_count == 1

    async def report_interrupted(self, topic: str, positions: Sequence[tuple[int, int]], now: datetime) -> None:
        """Count a death for each event that was in a handler when its process ended."""
        with translated():
            await self._interrupted.bulk_write(
                [
                    UpdateOne(
                        {"_id": letter_id(Position(topic, partition, offset))},
                        {"$inc": {"deaths": 1}, "$set": {"lastAt": now}},
                        upsert=True,
                    )
                    for partition, offset in positions
                ],
                ordered=False,
            )

    async def interrupted(self) -> dict[str, int]:
        """How often each event took its process down, by the event's place; only those not handled since."""
        with translated():
            return {row["_id"]: row["deaths"] async for row in self._interrupted.find({})}

    async def forget_interrupted(self, places: Sequence[str]) -> None:
        with translated():
            for chunk in chunks(places):
                await self._interrupted.delete_many({"_id": {"$in": chunk}})


def asked_of(row: Mapping[str, Any]) -> Document:
    """By whom, why and when a request was made, and in which run if it is followed: as its dead letters keep it."""
    asked = {"by": row["by"], "reason": row["reason"], "at": row["requestedAt"]}
    return {**asked, "run": row["run"]} if row.get("run") else asked


def _outcome(status: str, now: datetime, letter: str | None = None) -> Document:
    return {"status": status, "at": now, "deadLetter": letter}
