"""What the runtime may rely on in its store: the same tests of the real one and of the one in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from carebus_common import mongo
from carebus_common.consumer import Position
from carebus_common.consumer.parked_store import ControlRow, ParkedStore, Request
from carebus_common.consumer.rows import NO_ROW, Parked, ParkedPatient, PatientRow, queue_id
from carebus_common.consumer.store import (
    BatchRefused,
    EffectsNotSupported,
    InboxRow,
    LetterUpdate,
    Moved,
    PatientWrite,
    Store,
    Writes,
    message_document,
)
from carebus_common.messages import Message
from carebus_common.settings import MongoSettings
from carebus_common.testing.consumer import Memory, MemoryParkedStore, MemoryStore
from carebus_local.parts import StackUrls
from carebus_local.testing import random_name

NOW = datetime(2026, 3, 29, 1, 30, 0, 123000, tzinfo=UTC)
MANY = 150  # more than one lookup's worth of ids


@dataclass
class Stores:
    """A store and the means to look behind it. Its effects are rows; those called `moved` and `fails` do that."""

    store: Store
    parked: ParkedStore
    database: Memory | mongo.Database
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store._effects = self._carry_out

    async def _carry_out(
        self, session: Any, effects: Sequence[tuple[dict[str, Any], Any]], ended: AsyncExitStack
    ) -> None:
        ended.push_async_callback(self._note, effects[0][0]["_id"])
        for number, (document, effect) in enumerate(effects):
            row = {"_id": number, "of": document["_id"], "effect": effect}
            match effect:
                case "moved":
                    raise Moved
                case "fails":
                    raise ValueError(effect)
            if isinstance(session, Memory):
                session.put("effects", row)
            else:
                await self.database["effects"].insert_one(row, session=session)  # type: ignore[union-attr]

    async def _note(self, inbox_id: str) -> None:
        self.ended.append("committed" if inbox_id in await self.rows("inbox") else "not committed")

    async def put(self, collection: str, *rows: Mapping[str, Any]) -> None:
        for row in rows:
            if isinstance(self.database, Memory):
                self.database.put(collection, row)
            else:
                await self.database[collection].replace_one({"_id": row["_id"]}, dict(row), upsert=True)

    async def rows(self, collection: str) -> dict[str, dict[str, Any]]:
        if isinstance(self.database, Memory):
            return dict(self.database[collection])
        return {row["_id"]: row for row in await self.database[collection].find({}).to_list()}

    async def everything(self) -> dict[str, dict[str, dict[str, Any]]]:
        names = ("inbox", "patients", "dead_letters", "parked_patients", "parked_events")
        return {name: await self.rows(name) for name in names}


def at(offset: int) -> Position:
    return Position("t", 1, offset)


def inbox(name: str, offset: int = 0, **fields: Any) -> dict[str, Any]:
    message = Message("out", b"k", b"\xff", (("h", b"\xfe"),))
    return {
        "_id": f"org/{name}",
        "source": {"topic": "t", "partition": 1, "offset": offset},
        "contentHash": b"\x00hash",
        "messages": [message_document(message)],
        **fields,
    }


def patient(read: PatientRow, new: PatientRow, name: str = "p") -> PatientWrite:
    return PatientWrite(f"org/{name}", "org", name, read, new)


def parked_patient(name: str = "p", **fields: Any) -> ParkedPatient:
    usual: dict[str, Any] = {"status": "retrying", "since": NOW, "token": 7, "due_at": NOW}
    return ParkedPatient(f"org/{name}", "org", name, "t", 1, **{**usual, **fields})


def letter(name: str = "t-1-5", **fields: Any) -> dict[str, Any]:
    return {"_id": name, "status": "open", "blocking": True, "publishedAt": None, "value": b"\xff", **fields}


def queue_row(number: int, name: str = "p") -> dict[str, Any]:
    return {"_id": queue_id(f"org/{name}", number), "key": b"p", "value": None, "headers": [["h", b"\xfe"]]}


def request(name: str, *, minutes: int = 0, partition: int = 1, topic: str = "t") -> dict[str, Any]:
    return {
        "_id": name,
        "topic": topic,
        "partition": partition,
        "action": "redrive",
        "deadLetterIds": ["t-1-5", "t-1-6"],
        "by": "an engineer",
        "organizationId": "carebus",
        "reason": "it is mended",
        "requestedAt": NOW + timedelta(minutes=minutes),
    }


PARKED = Parked(head=0, next=1, first=at(4), tail=at(5), token=7)


class Contract:
    """What both must do; `stores` is given by those below."""

    # --- one transaction ------------------------------------------------------------------------------------------

    async def test_what_is_written_is_read_again(self, stores: Stores) -> None:
        row = PatientRow(at(5), PARKED, {"seen": [1, {"deep": None}]})
        writes = Writes(inbox=[inbox("e", 5)], patients=[patient(NO_ROW, row)], parked=[parked_patient()])
        writes.queued.append(queue_row(0))
        await stores.store.write(writes)
        assert await stores.store.patient_rows(["org/p", "org/nobody"]) == {"org/p": row}
        known = InboxRow(at(5), b"\x00hash", (Message("out", b"k", b"\xff", (("h", b"\xfe"),)),))
        assert await stores.store.inbox_rows(["org/e", "org/unknown"]) == {"org/e": known}
        assert await stores.parked.parked_patients(["org/p", "org/nobody"]) == {"org/p": parked_patient()}
        assert await stores.parked.queue_rows(["org/p#0", "org/p#1"]) == {"org/p#0": queue_row(0)}

    @pytest.mark.parametrize("what", ["inbox", "patient", "queue", "unencodable", "in-batch"])
    async def test_a_transaction_that_is_refused_leaves_nothing_behind(self, stores: Stores, what: str) -> None:
        row = PatientRow(at(1), None, {})
        first = Writes(inbox=[inbox("e")], patients=[patient(NO_ROW, row)], queued=[queue_row(0)])
        await stores.store.write(first)
        before = await stores.everything()
        second = Writes(
            inbox=[inbox("new")],
            patients=[patient(NO_ROW, row, "q")],
            dead_letters=[letter()],
            queued=[queue_row(0, "q")],
            dequeued=["org/p#0"],
            parked=[parked_patient("q")],
        )
        match what:
            case "inbox":
                second.inbox.append(inbox("e"))
            case "patient":
                second.patients.append(patient(NO_ROW, row))
            case "queue":
                second.queued.append(queue_row(0))
            case "unencodable":
                second.inbox.append(inbox("big", too_large=2**70))
            case "in-batch":
                second.inbox.append(inbox("new"))
        with pytest.raises(BatchRefused if what == "unencodable" else Moved):
            await stores.store.write(second)
        assert await stores.everything() == before

    async def test_an_event_is_in_the_inbox_once(self, stores: Stores) -> None:
        await stores.store.write(Writes(inbox=[inbox("e", 1)]))
        with pytest.raises(Moved):
            await stores.store.write(Writes(inbox=[inbox("e", 2)]))
        assert (await stores.store.inbox_rows(["org/e"]))["org/e"].position == at(1)

    async def test_a_patient_row_is_written_only_over_the_one_that_was_read(self, stores: Stores) -> None:
        first = PatientRow(at(1), None, {"n": 1})
        second = PatientRow(at(2), PARKED, {"n": 2})
        await stores.store.write(Writes(patients=[patient(NO_ROW, first)]))
        await stores.store.write(Writes(patients=[patient(first, second)]))
        stale = (
            NO_ROW,
            first,
            replace(second, position=at(3)),
            replace(second, position=None),
            replace(second, parked=None),
            replace(second, parked=replace(PARKED, head=1)),
            replace(second, parked=replace(PARKED, next=2)),
            replace(second, parked=replace(PARKED, first=at(3))),
            replace(second, parked=replace(PARKED, tail=at(6))),
            replace(second, parked=replace(PARKED, token=8)),
        )
        for read in stale:
            with pytest.raises(Moved):
                await stores.store.write(Writes(patients=[patient(read, PatientRow(at(9), None, None))]))
        assert await stores.store.patient_rows(["org/p"]) == {"org/p": second}
        # The state is not part of what must stand.
        await stores.store.write(Writes(patients=[patient(replace(second, state=None), first)]))
        assert await stores.store.patient_rows(["org/p"]) == {"org/p": first}

    async def test_a_patient_who_was_parked_before_any_event_has_a_row(self, stores: Stores) -> None:
        row = PatientRow(None, PARKED, None)
        await stores.store.write(Writes(patients=[patient(NO_ROW, row)]))
        assert await stores.store.patient_rows(["org/p"]) == {"org/p": row}
        after = PatientRow(at(5), None, None)
        await stores.store.write(Writes(patients=[patient(row, after)]))
        assert await stores.store.patient_rows(["org/p"]) == {"org/p": after}

    async def test_a_patient_row_that_is_gone_is_not_written_again(self, stores: Stores) -> None:
        with pytest.raises(Moved):
            await stores.store.write(Writes(patients=[patient(PatientRow(at(1), None, None), NO_ROW)]))
        assert await stores.rows("patients") == {}

    async def test_queue_rows_come_and_go(self, stores: Stores) -> None:
        await stores.store.write(Writes(inbox=[inbox("a")], queued=[queue_row(n) for n in range(3)]))
        await stores.store.write(Writes(inbox=[inbox("b")], queued=[queue_row(3)], dequeued=["org/p#0", "org/p#9"]))
        assert set(await stores.rows("parked_events")) == {"org/p#1", "org/p#2", "org/p#3"}

    async def test_a_parked_patient_is_replaced_and_deleted(self, stores: Stores) -> None:
        await stores.store.write(Writes(inbox=[inbox("a")], parked=[parked_patient(), parked_patient("q")]))
        later = parked_patient(token=8, attempts=2, failure={"class": "X"}, dead_letter="t-1-5", give_up_at=NOW)
        await stores.store.write(Writes(inbox=[inbox("b")], parked=[later], unparked=["org/q", "org/nobody"]))
        assert await stores.parked.parked_patients(["org/p", "org/q"]) == {"org/p": later}

    async def test_a_dead_letter_that_is_there_already_stays_as_it_is(self, stores: Stores) -> None:
        await stores.store.write(Writes(dead_letters=[letter()]))
        await stores.store.write(Writes(dead_letters=[letter(status="discarded"), letter("t-1-6")]))
        assert await stores.parked.letters(["t-1-5", "t-1-6", "t-1-7"]) == {
            "t-1-5": letter(),
            "t-1-6": letter("t-1-6"),
        }

    async def test_a_dead_letter_is_updated_only_while_its_status_is_as_expected(self, stores: Stores) -> None:
        await stores.store.write(Writes(dead_letters=[letter()]))
        redriven: dict[str, Any] = {
            "status": "redriven",
            "outcome": {"status": "retrying", "at": NOW, "deadLetter": None},
        }
        await stores.store.write(Writes(letters=[LetterUpdate("t-1-5", "open", redriven)]))
        await stores.store.write(Writes(letters=[LetterUpdate("t-1-5", "open", {"status": "discarded"})]))
        await stores.store.write(Writes(letters=[LetterUpdate("t-1-9", "open", {"status": "discarded"})]))
        assert await stores.rows("dead_letters") == {"t-1-5": letter(**redriven)}

    async def test_a_letter_may_be_made_and_updated_in_one_transaction(self, stores: Stores) -> None:
        await stores.store.write(Writes(dead_letters=[letter()]))
        update = LetterUpdate("t-1-5", "open", {"status": "redriven"})
        await stores.store.write(Writes(dead_letters=[letter(), letter("t-1-5~1")], letters=[update]))
        found = await stores.parked.letters(["t-1-5", "t-1-5~1"])
        assert {name: row["status"] for name, row in found.items()} == {"t-1-5": "redriven", "t-1-5~1": "open"}

    async def test_what_the_caller_does_with_its_values_afterwards_changes_nothing(self, stores: Stores) -> None:
        state = {"seen": [1]}
        await stores.store.write(Writes(patients=[patient(NO_ROW, PatientRow(at(1), None, state))]))
        state["seen"].append(2)
        (read,) = (await stores.store.patient_rows(["org/p"])).values()
        assert read.state == {"seen": [1]}
        read.state["seen"].append(3)
        assert (await stores.store.patient_rows(["org/p"]))["org/p"].state == {"seen": [1]}

    async def test_lookups_of_many_ids_find_them_all_and_one_asked_for_twice_once(self, stores: Stores) -> None:
        names = [f"n{n}" for n in range(MANY)]
        row = PatientRow(at(1), None, None)
        await stores.store.write(
            Writes(
                inbox=[inbox(name) for name in names],
                patients=[patient(NO_ROW, row, name) for name in names],
                dead_letters=[letter(name) for name in names],
                queued=[queue_row(n) for n in range(MANY)],
                parked=[parked_patient(name) for name in names],
            )
        )
        row_ids = [f"org/{name}" for name in names]
        assert set(await stores.store.inbox_rows([*row_ids, *row_ids])) == set(row_ids)
        assert set(await stores.store.patient_rows([*row_ids, *row_ids])) == set(row_ids)
        assert set(await stores.parked.parked_patients(row_ids)) == set(row_ids)
        assert set(await stores.parked.letters(names)) == set(names)
        assert len(await stores.parked.queue_rows([queue_id("org/p", n) for n in range(MANY + 1)])) == MANY
        assert await stores.parked.counts() == (MANY, MANY)
        assert await stores.store.inbox_rows([]) == {}

    # --- effects --------------------------------------------------------------------------------------------------

    async def test_effects_are_written_with_the_events_they_belong_to(self, stores: Stores) -> None:
        (a, b), row = (inbox("a"), inbox("b")), PatientRow(at(1), None, {})
        await stores.store.write(
            Writes(inbox=[a, b], effects=[(a, "first"), (a, "second"), (b, "third")], patients=[patient(NO_ROW, row)])
        )
        assert [(row["of"], row["effect"]) for row in (await stores.rows("effects")).values()] == [
            ("org/a", "first"),
            ("org/a", "second"),
            ("org/b", "third"),
        ]
        assert stores.ended == ["committed"]

    @pytest.mark.parametrize("what", ["inbox", "patient", "moved", "fails"])
    async def test_a_transaction_that_is_refused_has_no_effects(self, stores: Stores, what: str) -> None:
        known, new = inbox("known"), inbox("new")
        await stores.store.write(Writes(inbox=[known]))
        writes = Writes(inbox=[new], effects=[(new, "first"), (new, what)])
        if what == "inbox":
            writes.inbox.append(known)
        if what == "patient":
            stale = PatientRow(at(1), None, None)
            writes.patients.append(patient(stale, stale))
        with pytest.raises(BatchRefused if what == "fails" else Moved):
            await stores.store.write(writes)
        assert await stores.rows("effects") == {}
        assert set(await stores.rows("inbox")) == {"org/known"}
        assert stores.ended == ["not committed"]

    async def test_effects_that_nobody_carries_out_are_a_bug_and_not_left_out(self, stores: Stores) -> None:
        new = inbox("new")
        stores.store._effects = None
        with pytest.raises(EffectsNotSupported, match=r"Store\(effects=\.\.\.\)"):
            await stores.store.write(Writes(inbox=[new], effects=[(new, "first")]))
        assert await stores.rows("inbox") == {}

    # --- what is parked, and what was asked for -------------------------------------------------------------------

    async def test_only_the_patients_with_whom_something_happens_are_active(self, stores: Stores) -> None:
        patients = [
            parked_patient("a"),
            parked_patient("b", status="publishing", due_at=None),
            parked_patient("c", status="dead-lettered"),
            replace(parked_patient("d"), partition=2),
            replace(parked_patient("e"), topic="u"),
        ]
        await stores.store.write(Writes(inbox=[inbox("a")], parked=patients))
        assert {p.row_id for p in await stores.parked.active("t", {1})} == {"org/a", "org/b"}
        assert {p.row_id for p in await stores.parked.active("t", {1, 2, 3})} == {"org/a", "org/b", "org/d"}
        assert await stores.parked.active("t", set()) == []

    async def test_requests_of_the_partitions_come_oldest_first_until_they_are_done(self, stores: Stores) -> None:
        await stores.put(
            "dead_letter_requests",
            {**request("late", minutes=2), "run": "a-run"},
            request("early", minutes=1),
            request("elsewhere", partition=2),
            request("another", topic="u"),
        )
        found = await stores.parked.requests("t", {1, 3}, 10)
        asked = {"by": "an engineer", "reason": "it is mended", "at": NOW + timedelta(minutes=1)}
        assert found[0] == Request("early", 1, "redrive", ("t-1-5", "t-1-6"), asked)
        assert [r.id for r in found] == ["early", "late"]
        assert found[1].asked["run"] == "a-run"
        assert len(await stores.parked.requests("t", {1}, 1)) == 1
        await stores.parked.requests_done(["early", "unknown"])
        assert [r.id for r in await stores.parked.requests("t", {1}, 10)] == ["late"]
        await stores.parked.requests_done(["late"])
        assert set(await stores.rows("dead_letter_requests")) == {"elsewhere", "another"}

    async def test_an_acknowledged_dead_letter_leaves_alone_a_patient_who_went_on(self, stores: Stores) -> None:
        publishing = parked_patient(status="publishing", due_at=None, dead_letter="t-1-5")
        gone_on = parked_patient("q", status="publishing", due_at=None, dead_letter="t-1-6~1")
        retried = parked_patient("r", dead_letter="t-1-7")
        letters = [letter("t-1-5"), letter("t-1-6"), letter("t-1-7"), letter("t-1-8", blocking=False)]
        await stores.store.write(Writes(dead_letters=letters, parked=[publishing, gone_on, retried]))
        published = [("t-1-5", "org/p"), ("t-1-6", "org/q"), ("t-1-7", "org/r"), ("t-1-8", None)]
        await stores.parked.letters_published(published, NOW)
        assert all(row["publishedAt"] == NOW for row in (await stores.rows("dead_letters")).values())
        assert await stores.parked.parked_patients(["org/p", "org/q", "org/r"]) == {
            "org/p": replace(publishing, status="dead-lettered"),
            "org/q": gone_on,
            "org/r": retried,
        }

    async def test_only_open_dead_letters_that_nobody_waits_for_are_discarded_apart(self, stores: Stores) -> None:
        letters = [
            letter("a", blocking=False),
            letter("b", blocking=False, status="redriven"),
            letter("c"),
            letter("d", blocking=False),
        ]
        await stores.store.write(Writes(dead_letters=letters))
        asked = {"by": "an engineer", "reason": "noise", "at": NOW}
        await stores.parked.discard_unblocking(["a", "b", "c", "unknown"], asked, NOW)
        outcome = {"status": "discarded", "at": NOW, "deadLetter": None}
        discarded = letter("a", blocking=False, status="discarded", discard=asked, outcome=outcome)
        assert list((await stores.rows("dead_letters")).values()) == [discarded, *letters[1:]]

    # --- the group's row, and what was interrupted ----------------------------------------------------------------

    async def test_the_groups_row_is_written_over_the_version_before_it(self, stores: Stores) -> None:
        assert await stores.parked.control("g") is None
        first = ControlRow(1, None, {"consecutive": 1, "window": [[1, 1]]})
        assert await stores.parked.save_control("g", first)
        assert await stores.parked.control("g") == first
        assert not await stores.parked.save_control("g", replace(first, failures=None))
        second = ControlRow(2, {"reason": "failures", "detail": "many", "at": NOW}, first.failures)
        assert await stores.parked.save_control("g", second)
        for version in (1, 2, 4):
            assert not await stores.parked.save_control("g", replace(first, version=version))
        assert await stores.parked.control("g") == second
        assert not await stores.parked.save_control("other", second)
        assert await stores.parked.control("other") is None

    async def test_deaths_are_counted_by_place_until_they_are_forgotten(self, stores: Stores) -> None:
        assert await stores.parked.interrupted() == {}
        await stores.parked.report_interrupted("t", [(1, 5), (2, 7)], NOW)
        await stores.parked.report_interrupted("t", [(1, 5)], NOW)
        assert await stores.parked.interrupted() == {"t-1-5": 2, "t-2-7": 1}
        await stores.parked.forget_interrupted(["t-1-5", "t-9-9"])
        assert await stores.parked.interrupted() == {"t-2-7": 1}


class TestTheRealStore(Contract):
    @pytest_asyncio.fixture(loop_scope="session")
    async def stores(self, stack: StackUrls) -> AsyncIterator[Stores]:
        client = mongo.connect(MongoSettings(mongo_url=stack.mongo_url), app_name="tests")
        name = random_name("contract")
        store = Store(client[name], inbox="inbox", patients="patients")
        yield Stores(store, ParkedStore(store), client[name])
        await client.drop_database(name)
        await client.close()


class TestTheStoreInMemory(Contract):
    @pytest.fixture
    def stores(self) -> Stores:
        memory = Memory()
        return Stores(MemoryStore(memory), MemoryParkedStore(memory), memory)


@pytest.mark.parametrize(("real", "fake"), [(Store, MemoryStore), (ParkedStore, MemoryParkedStore)])
def test_the_store_in_memory_leaves_no_method_to_the_real_one(real: type, fake: type) -> None:
    public = {name for name, value in vars(real).items() if callable(value) and not name.startswith("_")}
    assert public
    assert public <= vars(fake).keys()
