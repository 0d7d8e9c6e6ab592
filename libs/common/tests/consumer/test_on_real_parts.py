"""What the runtime promises, on a real broker and a real store."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from carebus_common.consumer import Delivery, Limits, Position, State
from carebus_common.consumer.rows import NO_ROW, Parked, PatientRow
from carebus_common.consumer.store import Moved, PatientWrite, Writes
from carebus_common.contracts.event import MedicalEvent
from carebus_common.kafka import Publisher
from carebus_common.messages import Message
from carebus_local.testing import create_topic

from .conftest import World, appending, event, eventually, of_patient


async def test_events_of_a_patient_take_effect_in_the_order_of_the_log(world: World) -> None:
    events = [event(f"p{n % 7}", n=n) for n in range(700)]
    await world.send(*events)
    async with world.consuming():
        await world.wait_for_inbox(700)
        out = await world.emitted(700)
    for p in range(7):
        expected = list(range(p, 700, 7))
        assert await world.seen(f"p{p}") == expected
        assert of_patient(out, f"p{p}") == expected
    assert len(out) == 700
    assert await world.committed() == 700


async def test_two_hundred_copies_of_one_event_have_one_effect(world: World) -> None:
    one = event(n=1)
    await world.send(*[one] * 200, event(n=2))
    async with world.consuming():
        await world.wait_for_inbox(2)

        async def all_committed() -> bool:
            return await world.committed() == 201

        await eventually(all_committed)
    assert await world.seen() == [1, 2]
    assert [m["n"] for m in await world.emitted(2)] == [1, 2]


async def test_the_same_event_id_with_another_payload_is_a_conflict_and_the_first_stands(world: World) -> None:
    event_id = uuid4()
    await world.send(event(event_id=event_id, n=1), event(event_id=event_id, n=99), event(n=2))
    async with world.consuming():
        await world.wait_for_inbox(2)

        async def recorded() -> bool:
            return await world.database["dead_letters"].count_documents({"reason": "conflict"}) == 1

        await eventually(recorded)
    assert await world.seen() == [1, 2]
    row = await world.database["dead_letters"].find_one({})
    assert row is not None
    assert row["eventId"] == str(event_id)
    assert b'"n":99' in row["value"]


async def test_one_event_id_under_two_patients_takes_effect_once(world: World) -> None:
    event_id = uuid4()
    await world.send(*(event(f"p{n}", event_id=event_id, n=n) for n in range(40)))
    async with world.consuming():

        async def settled() -> bool:
            return await world.database["dead_letters"].count_documents({}) == 39

        await eventually(settled)
    assert await world.inbox_count() == 1
    assert len(await world.emitted(1)) == 1


async def test_two_organizations_may_use_the_same_patient_and_event_ids(world: World) -> None:
    event_id = uuid4()
    await world.send(event(event_id=event_id, org="a", n=1), event(event_id=event_id, org="b", n=2))
    async with world.consuming():
        await world.wait_for_inbox(2)
    assert await world.seen(org="a") == [1]
    assert await world.seen(org="b") == [2]


async def test_a_redelivery_emits_the_same_messages_again_and_changes_nothing(world: World) -> None:
    await world.send(*(event(n=n) for n in range(5)))

    class Swallows:
        """A broker that acknowledges nothing: the process dies between its commit and its emission."""

        async def publish_each(self, messages: Any) -> Any:
            await asyncio.Event().wait()

    world.limits = Limits(drain_timeout=timedelta(milliseconds=100))
    async with world.consuming(publisher=Swallows()):
        await world.wait_for_inbox(5)
    assert await world.committed() == 0
    rows = await world.database["inbox"].find({}).to_list()
    async with world.consuming():
        out = await world.emitted(5)
        await world.send(event(n=5))
        await world.wait_for_inbox(6)
    assert [m["n"] for m in out] == [0, 1, 2, 3, 4]
    assert await world.seen() == [0, 1, 2, 3, 4, 5]
    again = await world.database["inbox"].find({"data.n": {"$lt": 5}}).to_list()
    assert again == rows


async def test_a_slow_handler_holds_up_its_own_patient_only(world: World) -> None:
    fast = appending(world.out)
    release = asyncio.Event()

    def handle(state: State | None, delivery: Delivery[MedicalEvent]) -> Any:
        change = fast(state, delivery)
        if delivery.event.data.get("slow"):

            async def wait() -> Any:
                await release.wait()
                return change

            return wait()
        return change

    await world.send(event("slow", n=0, slow=True), *(event("slow", n=n) for n in range(1, 4)))
    await world.send(*(event(f"p{n % 20}", n=n) for n in range(200)))
    async with world.consuming(handle):
        await world.wait_for_inbox(200)
        assert await world.seen("slow") == []
        release.set()
        await world.wait_for_inbox(204)
    assert await world.seen("slow") == [0, 1, 2, 3]


async def test_an_undecodable_record_without_a_key_is_kept_with_its_bytes_and_passed(world: World) -> None:
    await world.send_raw(Message(world.topic, None, b"\xff not json", (("x", b"\xfe"),)))
    await world.send(event(n=1))
    async with world.consuming():
        await world.wait_for_inbox(1)

        async def kept() -> bool:
            return await world.database["dead_letters"].count_documents({"reason": "undecodable"}) == 1

        await eventually(kept)
    row = await world.database["dead_letters"].find_one({})
    assert row is not None
    assert row["value"] == b"\xff not json"
    assert row["headers"] == [["x", b"\xfe"]]


async def test_replicas_that_come_and_go_lose_and_repeat_nothing(world: World) -> None:
    """Order, exactly one effect and emission in order while the group is rebalanced all the time."""
    rng = random.Random(7)
    patients = [f"p{n}" for n in range(50)]
    sent: dict[str, list[int]] = {p: [] for p in patients}
    done = asyncio.Event()

    async def produce() -> None:
        history: list[MedicalEvent] = []
        for _ in range(60):
            chunk = []
            for _ in range(25):
                if history and rng.random() < 0.1:
                    chunk.append(rng.choice(history))
                    continue
                p = rng.choice(patients)
                sent[p].append(len(sent[p]))
                chunk.append(event(p, n=len(sent[p]) - 1))
            history += chunk
            await world.send(*chunk)
        done.set()

    async def join_and_leave() -> None:
        while not done.is_set():
            async with world.consuming():
                await asyncio.sleep(0.3)

    async with world.consuming():
        await asyncio.gather(produce(), join_and_leave())
        await world.wait_for_inbox(sum(map(len, sent.values())), within=60)

        async def all_committed() -> bool:
            return await world.committed() == 1500

        await eventually(all_committed, within=30)
    out = await world.emitted(sum(map(len, sent.values())))
    for p in patients:
        assert await world.seen(p) == sent[p]
        assert list(dict.fromkeys(of_patient(out, p))) == sent[p]


async def test_two_owners_of_one_partition_cannot_both_change_a_patient(world: World) -> None:
    """A zombie that still holds a partition's records is refused by the patient's fence and the inbox."""
    await world.send(*(event(n=n) for n in range(50)))
    zombie_topic = world.group
    async with world.consuming():
        world.group = f"{zombie_topic}-zombie"  # another group: it is given the very same records
        async with world.consuming():
            await world.send(*(event(n=n) for n in range(50, 100)))
            await world.wait_for_inbox(100)
    assert await world.seen() == list(range(100))
    assert await world.inbox_count() == 100


async def test_two_writers_of_one_patient_lose_no_update(world: World) -> None:
    """Two consumers of different topics share a store, as when a patient's events come by two partitions."""
    other = replace(world, topic=f"{world.topic}-other", group=f"{world.group}-other")
    await create_topic(world.stack.kafka_bootstrap, other.topic, 4)
    other.publisher = Publisher(world.stack.kafka_bootstrap, client_id="other", topics=[other.topic])
    await other.publisher.start()
    async with world.consuming(), other.consuming():
        for n in range(0, 300, 10):
            await asyncio.gather(
                world.send(*(event(n=m) for m in range(n, n + 10))),
                other.send(*(event(n=m) for m in range(1000 + n, 1010 + n))),
            )
        await world.wait_for_inbox(600)
    await other.publisher.stop()
    seen = await world.seen()
    assert sorted(seen) == [*range(300), *range(1000, 1300)]
    assert [n for n in seen if n < 1000] == list(range(300))


async def test_a_patient_row_that_is_not_as_it_was_read_is_not_written(world: World) -> None:
    store = world.store()

    def write(read: PatientRow, offset: int) -> Writes:
        new = PatientRow(Position("t", 0, offset), parked=None, state={"offset": offset})
        inbox = {"_id": f"org/{offset}", "marker": True}
        return Writes(inbox=[inbox], patients=[PatientWrite("org/p", "org", "p", read, new)])

    nothing = NO_ROW
    await store.write(write(nothing, 1))
    (first,) = (await store.patient_rows(["org/p"])).values()
    await store.write(write(first, 2))
    (second,) = (await store.patient_rows(["org/p"])).values()
    for stale in (nothing, first, replace(second, parked=Parked(0, 1, Position("t", 0, 1), Position("t", 0, 1), 7))):
        with pytest.raises(Moved):
            await store.write(write(stale, 3))
    assert (await store.patient_rows(["org/p"])) == {"org/p": second}
    assert await world.inbox_count() == 2


async def test_patients_that_a_dead_owners_transaction_holds_do_not_hold_up_the_others(world: World) -> None:
    """After a kill -9 inside a transaction the store keeps it open for a minute."""
    world.limits = replace(world.limits, held_together=2, held_retry=timedelta(milliseconds=100))
    await world.send(*(event(f"p{n}", n=0) for n in range(40)))
    async with world.consuming():
        await world.wait_for_inbox(40)
        client = world.database.client
        async with client.start_session() as session:
            await session.start_transaction()
            await world.database["patients"].update_one({"_id": "org/p7"}, {"$set": {"held": 1}}, session=session)
            await world.send(*(event(f"p{n}", n=1) for n in range(40)))
            await world.wait_for_inbox(40 + 37)
            assert await world.seen("p7") == [0]
            await session.abort_transaction()
        await world.wait_for_inbox(80)
    for n in range(40):
        assert await world.seen(f"p{n}") == [0, 1]
