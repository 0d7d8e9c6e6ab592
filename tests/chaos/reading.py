"""What came of the events: read from the services' databases and from the topics, past every service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from hashlib import blake2b
from time import monotonic
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from carebus_common.contracts.topics import EVENTS, EVENTS_DLQ, EVENTS_PROCESSED
from carebus_local.parts import StackUrls

from .oracle import DeadLetter, Found
from .trail import FIELD, Trail

__all__ = ["GROUPS", "NotDrained", "Reader", "reading"]

Document = dict[str, Any]
# Each group and the topic it reads.
GROUPS: Mapping[str, str] = {"carebus-processor": EVENTS.name, "carebus-claims": EVENTS_PROCESSED.name}


_WHOSE = {"eventId": 1, "patientId": 1, "organizationId": 1}


_TURN = "patients whose turn it is"


class _Processed(msgspec.Struct, rename="camel"):
    event_id: str
    organization_id: str
    patient_id: str


_processed = msgspec.json.Decoder(_Processed)


@asynccontextmanager
async def reading(parts: StackUrls) -> AsyncIterator[Reader]:
    """A reader of these parts. It asks the store past any proxy; the broker sends everybody through its own."""
    client: AsyncMongoClient[Document] = AsyncMongoClient(
        parts.mongo_url, tz_aware=True, serverSelectionTimeoutMS=5000, socketTimeoutMS=180_000
    )
    try:
        yield Reader(parts.kafka_bootstrap, client)
    finally:
        await client.close()


class NotDrained(AssertionError):
    """`stuck`: nothing comes any more, and patients wait whose turn it is."""

    def __init__(self, seconds: float, left: Mapping[str, Any]) -> None:
        super().__init__(f"not drained within {seconds:g} s: {dict(left)}")
        self.stuck = bool(left.get(_TURN))


class Reader:
    def __init__(self, bootstrap: str, client: AsyncMongoClient[Document]) -> None:
        self._bootstrap = bootstrap
        self.processor: AsyncDatabase[Document] = client["carebus_processor"]
        self.claims: AsyncDatabase[Document] = client["carebus_claims"]

    @asynccontextmanager
    async def _consumer(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, group_id=None, enable_auto_commit=False)
        await consumer.start()
        try:
            yield consumer
        finally:
            await consumer.stop()

    async def ends(self, topic: str) -> dict[TopicPartition, int]:
        """Each partition's next offset."""
        async with self._consumer() as consumer:
            return await _ends(consumer, topic)

    async def lag(self) -> dict[str, int]:
        """How many records each group has not committed past yet. Raises KafkaError."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        try:
            committed = {group: await admin.list_consumer_group_offsets(group) for group in GROUPS}
        finally:
            await admin.close()
        lags: dict[str, int] = {}
        async with self._consumer() as consumer:
            for group, topic in GROUPS.items():
                ends = await _ends(consumer, topic)
                passed = {partition: meta.offset for partition, meta in committed[group].items()}
                lags[group] = sum(end - max(0, passed.get(partition, 0)) for partition, end in ends.items())
        return lags

    async def drained(self, *, within: float) -> float:
        """Wait until no group has lag and no patient waits for a retry; the seconds it took. Raises NotDrained."""
        return await self._until(self._left, within)

    async def caught_up(self, *, within: float) -> float:
        """Wait until no group has lag."""
        return await self._until(self._lagging, within)

    async def _until(self, left: Callable[[], Awaitable[Mapping[str, Any]]], within: float) -> float:
        began = monotonic()
        while True:
            try:
                still = await left()
            except (KafkaError, PyMongoError, OSError) as error:
                still = {"unreadable": type(error).__name__}
            if not still:
                return monotonic() - began
            if monotonic() - began > within:
                raise NotDrained(within, still)
            await asyncio.sleep(0.3)

    async def _lagging(self) -> Mapping[str, Any]:
        return {group: lag for group, lag in (await self.lag()).items() if lag}

    async def _left(self) -> Mapping[str, Any]:
        if lagging := await self._lagging():
            return lagging
        retrying = await self.processor["parked_patients"].count_documents({"status": {"$ne": "dead-lettered"}})
        requests = await self.processor["dead_letter_requests"].count_documents({})
        if retrying or requests:
            return {_TURN: retrying, "requests": requests}
        # What was retried meanwhile may have been emitted after the lag was read.
        return await self._lagging()

    async def found(self, organization: str, since: Mapping[TopicPartition, int] | None = None) -> Found:
        """Everything about one organization's events; topics from the offsets `since` on."""
        org = {"organizationId": organization}
        had_effect = {**org, "discardedAt": {"$exists": False}}
        rows = [row async for row in self.processor["processed_events"].find(had_effect, {**_WHOSE, "source": 1})]
        states = self.processor["patients"].find(org, {f"state.{FIELD}": 1})
        histories = [row async for row in self.claims["patient_histories"].find(org, {**_WHOSE, "source": 1})]
        histories.sort(key=lambda row: (row["source"]["partition"], row["source"]["offset"]))
        summaries = self.claims["patients"].find(org, {"state.eventTotal": 1})
        letters = [row async for row in self.processor["dead_letters"].find(org, {"value": 0})]
        emitted, differing = await self._emitted(organization, since)
        return Found(
            applied=_by_patient(rows),
            trails={row["_id"]: Trail.from_state(row.get("state")) async for row in states if row.get("state")},
            emitted=emitted,
            differing=differing,
            parked=await self._parked(organization, rows, letters),
            dead_letters=[_letter(row) for row in letters],
            dlq=await self._dlq(organization),
            histories=_by_patient(histories),
            history_totals={row["_id"]: row["state"]["eventTotal"] async for row in summaries if row.get("state")},
        )

    async def _parked(
        self, organization: str, applied: Iterable[Document], letters: Iterable[Document]
    ) -> dict[str, list[str]]:
        """What waits in the queues: events that are nowhere else. A head that is a dead letter is counted there.

        A queue also holds copies that a sender sent again: other records of an event that was applied, is dead or
        waits further ahead. They are recognized when their turn comes. The same record in two places is not a copy.
        """
        dead = [one for one in letters if one["status"] == "open" and one["blocking"]]
        places = {(row["patientId"], row["eventId"]): _place(row) for row in (*applied, *dead)}
        heads_of = {(row["patientId"], row["eventId"]) for row in dead}
        found = self.processor["parked_events"].find({"organizationId": organization}, {**_WHOSE, "source": 1})
        rows = sorted([row async for row in found], key=lambda row: int(row["_id"].rpartition("#")[2]))
        seen: set[str] = set()
        waiting: list[Document] = []
        for row in rows:
            event, head = (row["patientId"], row["eventId"]), row["patientId"] not in seen
            seen.add(row["patientId"])
            if places.setdefault(event, _place(row)) == _place(row) and not (head and event in heads_of):
                waiting.append(row)
        return _by_patient(waiting)

    async def _emitted(
        self, organization: str, since: Mapping[TopicPartition, int] | None
    ) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """What was published, and of what not every message has the same bytes."""
        emitted: dict[str, list[str]] = {}
        differing: dict[str, list[str]] = {}
        digests: dict[str, bytes] = {}
        async for record in self.records(EVENTS_PROCESSED.name, since):
            event = _processed.decode(record.value)
            if event.organization_id != organization:
                continue
            patient = f"{organization}/{event.patient_id}"
            emitted.setdefault(patient, []).append(event.event_id)
            digest = blake2b(record.value, digest_size=8).digest()
            if digests.setdefault(event.event_id, digest) != digest:
                differing.setdefault(patient, []).append(event.event_id)
        return emitted, differing

    async def _dlq(self, organization: str) -> frozenset[str]:
        """Ids of the organization's dead letters on the topic."""
        ids: set[str] = set()
        async for record in self.records(EVENTS_DLQ.name):
            headers = dict(record.headers)
            if headers.get("organizationId") == organization.encode():
                ids.add(headers["dlq.id"].decode())
        return frozenset(ids)

    async def records(
        self, topic: str, since: Mapping[TopicPartition, int] | None = None
    ) -> AsyncIterator[ConsumerRecord]:
        """All of a topic as it is now, each partition in order."""
        async with self._consumer() as consumer:
            ends = await _ends(consumer, topic)
            begins = {partition: (since or {}).get(partition, 0) for partition in ends}
            wanted = {partition for partition, end in ends.items() if end > begins[partition]}
            if not wanted:
                return
            consumer.assign(list(wanted))
            for partition in wanted:
                consumer.seek(partition, begins[partition])
            while wanted:
                fetched = await consumer.getmany(*wanted, timeout_ms=1000, max_records=5000)
                for partition, records in fetched.items():
                    for record in records:
                        if record.offset < ends[partition]:
                            yield record
                for partition in list(wanted):
                    if await consumer.position(partition) >= ends[partition]:
                        wanted.discard(partition)


async def _ends(consumer: AIOKafkaConsumer, topic: str) -> dict[TopicPartition, int]:
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        await consumer._client.set_topics([topic])
        numbers = consumer.partitions_for_topic(topic) or set()
    found: dict[TopicPartition, int] = await consumer.end_offsets([TopicPartition(topic, n) for n in sorted(numbers)])
    return found


def _by_patient(rows: Iterable[Document]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(f"{row['organizationId']}/{row['patientId']}", []).append(row["eventId"])
    return found


def _place(row: Document) -> tuple[int, int]:
    return row["source"]["partition"], row["source"]["offset"]


def _letter(row: Document) -> DeadLetter:
    return DeadLetter(
        row["_id"],
        f"{row['organizationId']}/{row['patientId']}",
        row["eventId"] or "",
        row["status"],
        bool(row.get("blocking", False)),
    )
