"""The owner's store, as the runtime uses it: one transaction for all that a batch of events changes.

An inbox row is `{_id: "organization/eventId", organizationId, eventId, patientId, source: {topic, partition,
offset}, contentHash, messages: [{topic, key, value, headers}], processedAt, processingDurationMs}` and what the
handler adds; that of a discarded event has no patientId, `discardedAt` and nothing else. A patient row is `{_id:
"organization/patientId", organizationId, patientId, position: {topic, partition, offset}, parked: false | {head, next,
first, tail, token}, state}` (see `rows`). What is parked and what is dead is read in `parked_store`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from bson.errors import InvalidBSON, InvalidDocument
from pymongo import AsyncMongoClient, DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from carebus_common.consumer.change import Position
from carebus_common.consumer.errors import PauseConsumption, StoreAway
from carebus_common.consumer.rows import Parked, ParkedPatient, PatientRow, source_document
from carebus_common.messages import Message

__all__ = [
    "BatchRefused",
    "Effects",
    "EffectsNotSupported",
    "InboxRow",
    "LetterUpdate",
    "Moved",
    "PatientWrite",
    "Store",
    "Writes",
    "carried_out",
    "chunks",
    "message_document",
    "message_from_document",
    "patient_document",
    "patient_from_document",
    "translated",
]

Document = dict[str, Any]

# Some stores compare each match against the whole list, so that a lookup's cost grows with its square.
_LOOKUP_CHUNK = 64
_DUPLICATE_KEY = 11000
# mongod's codes for "not now": shutting down, stepping down, no primary, interrupted.
_AWAY_CODES = frozenset(
    {6, 7, 24, 50, 89, 91, 134, 189, 202, 246, 251, 262, 263, 9001, 10107, 11600, 11602, 13435, 13436, 14031}
)


class Moved(Exception):
    """An inbox row already exists or a patient row is not as it was read: look again, then decide again."""


class BatchRefused(Exception):
    """The store refused the content of a batch. Which event is to blame is found by splitting."""


class EffectsNotSupported(RuntimeError):
    """A handler's change has effects, and its store was not told how to carry them out: a bug."""


# Carries out what a transaction's events do beside the runtime's own rows: `(session, [(inbox document, effect), …],
# ended)`, each patient's in their order, by statements in the session's transaction. What is entered into `ended` is
# left when the transaction has ended, whether or not it was committed, and must not raise. May raise `Moved`, after
# which the batch is planned again; any other error that is not the store's absence is the fault of one of the events.
Effects = Callable[[Any, Sequence[tuple[Document, Any]], AsyncExitStack], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class InboxRow:
    """What is remembered of an event that had its effect."""

    position: Position
    content_hash: bytes
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class PatientWrite:
    """A patient's new row and the one its handlers read: written only if that still stands."""

    row_id: str
    organization_id: str
    patient_id: str
    read: PatientRow
    new: PatientRow


@dataclass(frozen=True, slots=True)
class LetterUpdate:
    """Fields to set on a dead letter, if its status is still `expected`."""

    letter_id: str
    expected: str
    fields: Document


@dataclass(slots=True)
class Writes:
    """One transaction's worth. `queued` and `dequeued` are rows of `parked_events`; `unparked` are row ids; `effects`
    have the document of `inbox` that they belong to."""

    inbox: list[Document] = field(default_factory=list)
    effects: list[tuple[Document, Any]] = field(default_factory=list)
    patients: list[PatientWrite] = field(default_factory=list)
    dead_letters: list[Document] = field(default_factory=list)
    letters: list[LetterUpdate] = field(default_factory=list)
    queued: list[Document] = field(default_factory=list)
    dequeued: list[str] = field(default_factory=list)
    parked: list[ParkedPatient] = field(default_factory=list)
    unparked: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.inbox or self.patients or self.dead_letters or self.letters)


class Store:
    """`inbox`, `patients` and the others are collection names in `database`; `effects` carries out those of changes."""

    def __init__(
        self,
        database: AsyncDatabase[Document],
        *,
        inbox: str,
        patients: str,
        dead_letters: str = "dead_letters",
        parked_patients: str = "parked_patients",
        parked_events: str = "parked_events",
        effects: Effects | None = None,
    ) -> None:
        self._effects = effects
        self.database = database
        self._client: AsyncMongoClient[Document] = database.client
        self._inbox: AsyncCollection[Document] = database[inbox]
        self._patients: AsyncCollection[Document] = database[patients]
        self.dead_letters: AsyncCollection[Document] = database[dead_letters]
        self.parked_patients: AsyncCollection[Document] = database[parked_patients]
        self.parked_events: AsyncCollection[Document] = database[parked_events]

    async def patient_rows(self, row_ids: Sequence[str]) -> dict[str, PatientRow]:
        """The rows that exist. Raises `StoreAway`."""
        found: dict[str, PatientRow] = {}
        with translated():
            for chunk in chunks(row_ids):
                async for row in self._patients.find({"_id": {"$in": chunk}}):
                    found[row["_id"]] = patient_from_document(row)
        return found

    async def inbox_rows(self, inbox_ids: Sequence[str]) -> dict[str, InboxRow]:
        """What is known of these events; absent: they had no effect yet. Raises `StoreAway`."""
        found: dict[str, InboxRow] = {}
        fields = {"source": 1, "contentHash": 1, "messages": 1}
        with translated():
            for chunk in chunks(inbox_ids):
                async for row in self._inbox.find({"_id": {"$in": chunk}}, fields):
                    found[row["_id"]] = InboxRow(
                        Position(**row["source"]),
                        bytes(row["contentHash"]),
                        tuple(map(message_from_document, row["messages"])),
                    )
        return found

    async def write(self, writes: Writes) -> None:
        """Write all or nothing, majority-committed when this returns.

        Raises `Moved` (an event is already in the inbox, or a patient's row changed: nothing was written),
        `BatchRefused` (nothing was written), or `StoreAway` (a commit may have happened or not). Raises
        `EffectsNotSupported`.
        """
        with translated():
            async with (
                AsyncExitStack() as ended,
                self._client.start_session() as session,
                await session.start_transaction(
                    read_concern=ReadConcern("majority"), write_concern=WriteConcern("majority", j=True)
                ),
            ):
                # First, so that what they wait for is no time for which rows of the transaction are held, and what
                # they read is not older than that.
                await carried_out(self._effects, session, writes, ended)
                if writes.inbox:
                    await self._inbox.insert_many(writes.inbox, ordered=False, session=session)
                if writes.patients:
                    await self._write_patients(writes.patients, session)
                if writes.dead_letters or writes.letters:
                    await self._write_letters(writes, session)
                if writes.queued:
                    await self.parked_events.insert_many(writes.queued, ordered=False, session=session)
                if writes.dequeued:
                    deletes = [DeleteOne({"_id": row_id}) for row_id in writes.dequeued]
                    await self.parked_events.bulk_write(deletes, ordered=False, session=session)
                if writes.parked or writes.unparked:
                    await self.parked_patients.bulk_write(
                        [
                            *(ReplaceOne({"_id": p.row_id}, p.document(), upsert=True) for p in writes.parked),
                            *(DeleteOne({"_id": row_id}) for row_id in writes.unparked),
                        ],
                        ordered=False,
                        session=session,
                    )

    async def _write_letters(self, writes: Writes, session: AsyncClientSession) -> None:
        operations = [
            # One that is there already was made of this very record, which was delivered again.
            *(UpdateOne({"_id": row["_id"]}, {"$setOnInsert": row}, upsert=True) for row in writes.dead_letters),
            *(
                UpdateOne({"_id": update.letter_id, "status": update.expected}, {"$set": update.fields})
                for update in writes.letters
            ),
        ]
        await self.dead_letters.bulk_write(operations, ordered=False, session=session)

    async def _write_patients(self, patients: list[PatientWrite], session: AsyncClientSession) -> None:
        operations: list[InsertOne[Document] | ReplaceOne[Document]] = []
        for write in patients:
            row = patient_document(write)
            if not write.read.exists:
                operations.append(InsertOne(row))
                continue
            as_read = {
                "_id": write.row_id,
                "position": _position_document(write.read.position),
                "parked": _parked_document(write.read.parked),
            }
            operations.append(ReplaceOne(as_read, row))
        expected = sum(isinstance(operation, ReplaceOne) for operation in operations)
        result = await self._patients.bulk_write(operations, ordered=False, session=session)
        if result.matched_count != expected:
            raise Moved


async def carried_out(effects: Effects | None, session: Any, writes: Writes, ended: AsyncExitStack) -> None:
    """Carry out the effects. Raises what `write` raises, or PyMongoError for `translated`."""
    if not writes.effects:
        return
    if effects is None:
        raise EffectsNotSupported("a handler returned a Change with effects: give its Store(effects=...)")
    try:
        await effects(session, writes.effects, ended)
    except (Moved, BatchRefused, PauseConsumption, PyMongoError):
        raise
    except Exception as error:
        # As a handler that fails: by splitting the batch it is found whose it is, and that event alone waits.
        raise BatchRefused(f"effects: {type(error).__name__}") from error


def message_from_document(row: Mapping[str, Any]) -> Message:
    key, value = row["key"], row["value"]
    return Message(
        row["topic"],
        None if key is None else bytes(key),
        None if value is None else bytes(value),
        tuple((name, bytes(content)) for name, content in row["headers"]),
    )


def message_document(message: Message) -> Document:
    return {
        "topic": message.topic,
        "key": message.key,
        "value": message.value,
        "headers": [list(header) for header in message.headers],
    }


def patient_from_document(row: Mapping[str, Any]) -> PatientRow:
    position, parked = row.get("position"), row.get("parked")
    if parked:
        parked = {**parked, "first": Position(**parked["first"]), "tail": Position(**parked["tail"])}
    return PatientRow(
        Position(**position) if position else None, Parked(**parked) if parked else None, row.get("state")
    )


def patient_document(write: PatientWrite) -> Document:
    """The patient's new row."""
    return {
        "_id": write.row_id,
        "organizationId": write.organization_id,
        "patientId": write.patient_id,
        "position": _position_document(write.new.position),
        "parked": _parked_document(write.new.parked),
        "state": write.new.state,
    }


def _position_document(position: Position | None) -> Document | None:
    return None if position is None else source_document(position)


def _parked_document(parked: Parked | None) -> Document | bool:
    if parked is None:
        return False
    return {
        "head": parked.head,
        "next": parked.next,
        "first": source_document(parked.first),
        "tail": source_document(parked.tail),
        "token": parked.token,
    }


def chunks(ids: Sequence[str]) -> Iterable[list[str]]:
    return (list(ids[i : i + _LOOKUP_CHUNK]) for i in range(0, len(ids), _LOOKUP_CHUNK))


@contextmanager
def translated() -> Iterator[None]:
    """Sort the driver's errors by what the runtime does next."""
    try:
        yield
    except DuplicateKeyError:
        raise Moved from None
    except BulkWriteError as error:
        codes = {item.get("code") for item in error.details.get("writeErrors", ())}
        if _DUPLICATE_KEY in codes or error.has_error_label("TransientTransactionError"):
            raise Moved from None
        if codes & _AWAY_CODES:
            raise StoreAway("the store refused writes for now") from error
        raise BatchRefused(f"write errors {sorted(map(str, codes))}") from error
    except (ConnectionFailure, ExecutionTimeout, WTimeoutError) as error:
        raise StoreAway(type(error).__name__) from error
    except OperationFailure as error:
        if error.code in _AWAY_CODES or error.has_error_label("UnknownTransactionCommitResult"):
            raise StoreAway(f"{type(error).__name__} {error.code}") from error
        if error.has_error_label("TransientTransactionError"):
            raise Moved from None
        raise BatchRefused(f"{type(error).__name__} {error.code}") from error
    except (InvalidDocument, DocumentTooLarge, OverflowError, UnicodeEncodeError) as error:
        raise BatchRefused(type(error).__name__) from error
    except (PyMongoError, InvalidBSON) as error:
        raise StoreAway(type(error).__name__) from error
