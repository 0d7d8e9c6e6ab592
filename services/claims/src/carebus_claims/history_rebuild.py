"""Patient histories and summaries, built anew from `medical.events.processed.v1` beside the ones that serve.

The shadow is what the log says, as far as it is retained; what serves is compared with it and mended row by row while
the consumer goes on. Its handlers make both, so they are the same where nothing was tampered with or lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from aiokafka import ConsumerRecord
from pymongo import InsertOne, ReplaceOne, UpdateOne
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import BulkWriteError

from carebus_claims.content import Difference, compare
from carebus_claims.handlers import record_history
from carebus_claims.repository import HISTORIES, PATIENTS
from carebus_common.consumer import Delivery, Subscription
from carebus_common.consumer.lanes import Record
from carebus_common.consumer.records import read_record
from carebus_common.consumer.rows import source_document
from carebus_common.contracts.processed import ProcessedEvent

__all__ = ["HistoryFindings", "HistoryRebuild", "LogEnds"]

Document = dict[str, Any]

_ROWS: Final = "patient_histories_shadow"
_PATIENTS: Final = "patients_shadow"
_CHUNK: Final = 500
# Some stores compare each match against the whole list.
_LOOKUP: Final = 64
_DUPLICATE: Final = 11000
# What the log determines of a row; when and how it was written is the runtime's own.
_OF_THE_LOG: Final = ("type", "canonicalType", "ts", "receivedAt", "data", "processing", "stay", "eventId", "patientId")


@dataclass(frozen=True, slots=True)
class LogEnds:
    """Of each partition: the first offset retained, the next to read, and the next that the service's group handles."""

    begins: Mapping[int, int]
    ends: Mapping[int, int]
    committed: Mapping[int, int]


@dataclass(slots=True)
class HistoryFindings:
    """What differs of one organization. `pending` patients moved on while they were looked at, and are to be looked at
    again; `parked` ones wait behind a failed event and are left alone; of `beyond` the log is not retained whole.
    """

    rows: Difference = field(default_factory=Difference)
    patients: Difference = field(default_factory=Difference)
    pending: int = 0
    parked: int = 0
    beyond: int = 0

    @property
    def same(self) -> bool:
        return not self.rows.ids and not self.patients.ids


class HistoryRebuild:
    """All organizations' histories. Holds about 150 bytes an event in memory. Methods raise PyMongoError."""

    def __init__(self, database: AsyncDatabase[Document], subscription: Subscription[ProcessedEvent]) -> None:
        self._database = database
        self._subscription = subscription
        self._seen: set[str] = set()
        self._discarded: set[str] = set()
        self._edited: dict[tuple[str, int, int], bytes] = {}

    async def begin(self) -> None:
        """Empty the shadow, and see which events were discarded or edited: their rows are not what the log says."""
        await self.end()
        letters = self._database["dead_letters"].find(
            {}, {"status": 1, "organizationId": 1, "eventId": 1, "source": 1, "edited": 1}
        )
        async for letter in letters:
            source = letter["source"]
            if letter["status"] == "discarded" and letter.get("eventId"):
                self._discarded.add(f"{letter['organizationId']}/{letter['eventId']}")
            if letter.get("edited") is not None:
                self._edited[source["topic"], source["partition"], source["offset"]] = bytes(letter["edited"])

    async def end(self) -> None:
        """Remove the shadow."""
        for name in (_ROWS, _PATIENTS):
            await self._database[name].drop()

    async def take(self, records: Sequence[ConsumerRecord]) -> None:
        """Fold records into the shadow: each partition's in the order of its offsets."""
        fresh = [record for raw in records if (record := self._fresh(raw)) is not None]
        states = await self._states(list({_patient_row(record) for record in fresh}))
        rows: list[Document] = []
        for record in fresh:
            event = record.event
            assert event is not None
            patient = _patient_row(record)
            before = states.get(patient)
            delivery = Delivery(event, record.position, datetime.now(UTC), record.headers)
            change = record_history(before["state"] if before else None, delivery)
            source = source_document(record.position)
            whose = {"organizationId": event.organization_id, "patientId": event.patient_id}
            rows.append(
                {
                    **change.row,
                    **whose,
                    "_id": record.inbox_id,
                    "eventId": str(event.event_id),
                    "source": source,
                    "contentHash": record.content_hash,
                }
            )
            states[patient] = {"_id": patient, **whose, "position": source, "state": change.state, "changed": True}
        for chunk in _chunks(rows):
            await self._database[_ROWS].insert_many(chunk, ordered=False)
        changed = [state for state in states.values() if state.pop("changed", False)]
        for chunk in _chunks(changed):
            writes = [ReplaceOne({"_id": row["_id"]}, row, upsert=True) for row in chunk]
            await self._database[_PATIENTS].bulk_write(writes, ordered=False)

    async def organizations(self) -> list[str]:
        found: set[str] = set()
        for name in (_PATIENTS, PATIENTS, HISTORIES):
            found.update(await self._database[name].distinct("organizationId"))
        return sorted(found)

    async def compare(self, organization_id: str, log: LogEnds) -> HistoryFindings:
        """What differs of an organization, once `take` was given all up to `log.ends`, read after `log.committed`."""
        found = HistoryFindings()
        found.rows = await compare(self._rows(HISTORIES, organization_id), self._rows(_ROWS, organization_id))
        found.patients = await compare(
            self._patients(PATIENTS, organization_id), self._patients(_PATIENTS, organization_id)
        )
        parked = {
            row["_id"]
            async for row in self._database[PATIENTS].find(
                {"organizationId": organization_id, "parked": {"$ne": False}}, {"_id": 1}
            )
        }
        found.parked = len(parked)
        await self._sort_out_rows(found, log, parked)
        await self._sort_out_patients(found, log, parked)
        return found

    async def mend(self, findings: HistoryFindings) -> int:
        """Give what differs the shadow's content, and return how many rows that were.

        A summary is written only on the position that it was compared at: nothing that the consumer did since is lost.
        """
        mended = 0
        for chunk in _chunks([*findings.rows.missing, *findings.rows.different], _LOOKUP):
            rows = await self._database[_ROWS].find({"_id": {"$in": chunk}}).to_list()
            mended += await self._write(HISTORIES, [self._row_write(row, findings) for row in rows])
        for chunk in _chunks(findings.rows.surplus, _LOOKUP):
            mended += (await self._database[HISTORIES].delete_many({"_id": {"$in": chunk}})).deleted_count
        for chunk in _chunks([*findings.patients.missing, *findings.patients.different], _LOOKUP):
            rows = await self._database[_PATIENTS].find({"_id": {"$in": chunk}}).to_list()
            missing = set(findings.patients.missing)
            mended += await self._write(PATIENTS, [_patient_write(row, row["_id"] in missing) for row in rows])
        for row_id in findings.patients.surplus:
            unset = {"_id": row_id, "parked": False}
            mended += (await self._database[PATIENTS].delete_one(unset)).deleted_count
        return mended

    def _row_write(self, row: Document, findings: HistoryFindings) -> InsertOne[Document] | UpdateOne:
        if row["_id"] in findings.rows.different:
            return UpdateOne({"_id": row["_id"]}, {"$set": {name: row[name] for name in _OF_THE_LOG}})
        own = {"messages": [], "processedAt": datetime.now(UTC), "processingDurationMs": 0.0}
        return InsertOne({**row, **own})

    async def _write(self, name: str, writes: Sequence[InsertOne[Document] | UpdateOne]) -> int:
        try:
            done = await self._database[name].bulk_write(list(writes), ordered=False)
        except BulkWriteError as error:
            # The consumer was first: its row is as good.
            if {one["code"] for one in error.details["writeErrors"]} != {_DUPLICATE}:
                raise
            return sum(int(error.details[name]) for name in ("nInserted", "nModified", "nUpserted"))
        return done.inserted_count + done.modified_count + done.upserted_count

    async def _sort_out_rows(self, found: HistoryFindings, log: LogEnds, parked: set[str]) -> None:
        """Leave what the consumer has not come to yet, what waits, and what the log does not reach back to."""
        kept: list[str] = []
        async for row in self._by_id(_ROWS, found.rows.missing):
            source = row["source"]
            if f"{row['organizationId']}/{row['patientId']}" not in parked and _handled(source, log):
                kept.append(row["_id"])
        found.rows.missing = kept
        kept = []
        async for row in self._by_id(HISTORIES, found.rows.surplus):
            source = row.get("source")
            if source is not None and source["topic"] == self._subscription.topic and not _retained(source, log):
                found.beyond += 1
            elif not _newer(source, log):
                kept.append(row["_id"])
        found.rows.surplus = kept

    async def _sort_out_patients(self, found: HistoryFindings, log: LogEnds, parked: set[str]) -> None:
        positions = {
            row["_id"]: row.get("position")
            async for row in self._by_id(PATIENTS, [*found.patients.different, *found.patients.surplus])
        }
        found.patients.missing = [
            row["_id"]
            async for row in self._by_id(_PATIENTS, found.patients.missing)
            if row["_id"] not in parked and _handled(row["position"], log)
        ]
        found.patients.surplus = [
            row_id
            for row_id in found.patients.surplus
            if row_id not in parked and _retained(positions.get(row_id), log) and not _newer(positions.get(row_id), log)
        ]
        kept: list[str] = []
        async for row in self._by_id(_PATIENTS, found.patients.different):
            if row["_id"] in parked:
                continue
            if not await self._whole(row, log):
                found.beyond += 1
            elif positions.get(row["_id"]) != row["position"]:
                found.pending += 1
            else:
                kept.append(row["_id"])
        found.patients.different = kept

    async def _whole(self, row: Document, log: LogEnds) -> bool:
        """Whether the log has all of the patient's events, so that the summary can be made of them."""
        partition = row["position"]["partition"]
        begin = log.begins[partition]
        if begin == 0:
            return True
        earlier = {
            "organizationId": row["organizationId"],
            "patientId": row["patientId"],
            "source.offset": {"$lt": begin},
        }
        return await self._database[HISTORIES].find_one(earlier, {"_id": 1}) is None

    def _fresh(self, raw: ConsumerRecord) -> Record[ProcessedEvent] | None:
        """The record, if it is an event that had its effect from there: no copy, no discarded one."""
        edited = self._edited.get((raw.topic, raw.partition, raw.offset))
        _, record = read_record(self._subscription, raw if edited is None else replace(raw, value=edited))
        if record.event is None or record.inbox_id in self._seen or record.inbox_id in self._discarded:
            return None
        self._seen.add(record.inbox_id)
        return record

    async def _states(self, patients: Sequence[str]) -> dict[str, Document]:
        return {row["_id"]: row async for row in self._by_id(_PATIENTS, patients)}

    async def _rows(self, name: str, organization_id: str) -> AsyncIterator[Document]:
        """What the log determines of an organization's rows; one that was discarded names no patient and is none."""
        async for row in self._all(name, organization_id, dict.fromkeys(_OF_THE_LOG, 1)):
            if "patientId" in row:
                yield row

    async def _patients(self, name: str, organization_id: str) -> AsyncIterator[Document]:
        async for row in self._all(name, organization_id, {"position": 1, "state": 1}):
            # One that was parked before any of its events was applied.
            if row.get("state") is not None:
                yield row

    async def _all(self, name: str, organization_id: str, fields: Document) -> AsyncIterator[Document]:
        # "0" comes right after "/".
        query = {"_id": {"$gt": f"{organization_id}/", "$lt": f"{organization_id}0"}}
        async for row in self._database[name].find(query, fields).sort("_id", 1).batch_size(1000):
            yield row

    async def _by_id(self, name: str, ids: Sequence[str]) -> AsyncIterator[Document]:
        for chunk in _chunks(ids, _LOOKUP):
            async for row in self._database[name].find({"_id": {"$in": chunk}}):
                yield row


def _patient_row(record: Record[ProcessedEvent]) -> str:
    assert record.event is not None
    return f"{record.event.organization_id}/{record.event.patient_id}"


def _patient_write(row: Document, missing: bool) -> UpdateOne:
    content = {name: value for name, value in row.items() if name != "_id"}
    if missing:
        # One with a summary is the consumer's, and refuses this one by its name.
        return UpdateOne(
            {"_id": row["_id"], "state": None}, {"$set": content, "$setOnInsert": {"parked": False}}, upsert=True
        )
    return UpdateOne({"_id": row["_id"], "position": row["position"]}, {"$set": {"state": row["state"]}})


def _handled(source: Document, log: LogEnds) -> bool:
    """Whether the service's group is past it."""
    return bool(source["offset"] < log.committed.get(source["partition"], 0))


def _retained(source: Document | None, log: LogEnds) -> bool:
    return source is not None and bool(source["offset"] >= log.begins.get(source["partition"], 0))


def _newer(source: Document | None, log: LogEnds) -> bool:
    return source is not None and bool(source["offset"] >= log.ends.get(source["partition"], 0))


def _chunks(items: Sequence[Any], size: int = _CHUNK) -> list[list[Any]]:
    return [list(items[begin : begin + size]) for begin in range(0, len(items), size)]
