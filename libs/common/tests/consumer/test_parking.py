"""Retry, parking, dead letters, redrive and discard, on a real broker and a real store."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from carebus_common.consumer import Change, DeadLetter, Delivery, Limits, RetryPolicy, State
from carebus_common.contracts.event import MedicalEvent, encode
from carebus_common.kafka import MessageRefused
from carebus_common.messages import Message

from .conftest import QUICK, World, appending, event, eventually, of_patient


class Failing:
    """A handler that fails as the event says: `fail` times, with with transient or permanent errors, until mended."""

    def __init__(self, out: str) -> None:
        self.good = appending(out)
        self.calls: Counter[Any] = Counter()
        self.mended = False

    def __call__(self, state: State | None, delivery: Delivery[MedicalEvent]) -> Any:
        data = delivery.event.data
        self.calls[data.get("n")] += 1
        if not self.mended:
            if data.get("permanent"):
                raise DeadLetter(f"patient {delivery.event.patient_id} has no such ward")
            if self.calls[data.get("n")] <= data.get("fail", 0):
                raise ValueError("not now")
        return self.good(state, delivery)


async def test_a_transient_failure_is_retried_and_what_follows_drains_in_order(world: World) -> None:
    handle = Failing(world.out)
    await world.send(
        *(
            event(patient, n=n, fail=2 if n == 3 and patient == "bad" else 0)
            for n in range(10)
            for patient in ("bad", "good")
        )
    )
    async with world.consuming(handle):
        await world.wait_for_inbox(20)
        await world.unparked()
        await world.send(event("bad", n=10))
        await world.wait_for_inbox(21)
    assert await world.seen("bad") == list(range(11))
    assert await world.seen("good") == list(range(10))
    assert of_patient(await world.emitted(21), "bad") == list(range(11))
    assert await world.rows("dead_letters") == []


async def test_everybody_else_flows_while_a_patient_is_parked(world: World) -> None:
    handle = Failing(world.out)
    await world.send(event("bad", n=0, permanent=True), event("bad", n=1))
    async with world.consuming(handle):
        await world.letters()
        await world.send(*(event(f"p{n % 20}", n=n) for n in range(200)), event("bad", n=2))
        await world.wait_for_inbox(200)

        async def all_committed() -> bool:
            return await world.committed() == 203

        await eventually(all_committed, what="the parked events' offsets are committed too")
        assert await world.seen("bad") == []
        assert len(await world.rows("parked_events")) == 2


async def test_a_permanent_failure_is_a_dead_letter_with_its_record_byte_for_byte(world: World) -> None:
    await world.send(event("bad", n=0, permanent=True), event("bad", n=1))
    async with world.consuming(Failing(world.out)):
        (letter,) = await world.letters()
        (dead,) = await world.records_of(world.dlq, 1)

        async def published() -> bool:
            return bool((await world.rows("parked_patients"))[0]["status"] == "dead-lettered")

        await eventually(published)
    (original, _) = await world.records_of(world.topic, 2)
    assert (dead.key, dead.value) == (original.key, original.value)
    assert dead.headers[: len(original.headers)] == original.headers
    told = {name: value.decode() for name, value in dead.headers if name.startswith("dlq.")}
    assert told["dlq.id"] == letter["_id"] == f"{world.topic}-{original.partition}-{original.offset}"
    assert told["dlq.reason"] == letter["reason"] == "permanent"
    assert told["dlq.offset"] == str(original.offset)
    assert told["dlq.fingerprint"] == letter["failure"]["fingerprint"]
    # What the handler said of the patient is taken out.
    assert told["dlq.error-message"] == letter["failure"]["message"] == "patient … has no such ward"
    assert letter["blocking"] and letter["value"] == original.value
    assert letter["failure"]["attempts"] == 1


async def test_the_last_retry_makes_a_dead_letter_and_the_patient_stays_parked(world: World) -> None:
    await world.send(*(event("bad", n=n, fail=99 if n == 0 else 0) for n in range(5)))
    handle = Failing(world.out)
    async with world.consuming(handle):
        (letter,) = await world.letters()
        await world.records_of(world.dlq, 1)
    assert handle.calls == {0: 4}
    assert letter["reason"] == "retries-exhausted"
    assert letter["failure"]["attempts"] == 4
    assert await world.seen("bad") == []
    assert [row["source"]["offset"] for row in await world.rows("parked_events")] == [1, 2, 3, 4]


async def test_a_redrive_applies_the_head_and_then_all_that_waited_in_order(world: World) -> None:
    handle = Failing(world.out)
    await world.send(*(event("bad", n=n, permanent=n == 3) for n in range(20)))
    async with world.consuming(handle):
        (letter,) = await world.letters()
        assert await world.seen("bad") == [0, 1, 2]
        handle.mended = True
        await world.ask("redrive", letter, letter)
        await world.wait_for_inbox(20)
        await world.unparked()
        await world.send(event("bad", n=20))
        await world.wait_for_inbox(21)
        out = await world.emitted(21)
    assert await world.seen("bad") == list(range(21))
    assert of_patient(out, "bad") == list(range(21))
    (letter,) = await world.rows("dead_letters")
    assert (letter["status"], letter["outcome"]["status"]) == ("redriven", "processed")
    assert letter["redrive"]["by"] == "an engineer"


async def test_a_redrive_that_fails_again_is_another_dead_letter_linked_to_the_first(world: World) -> None:
    await world.send(event("bad", n=0, permanent=True), event("bad", n=1))
    handle = Failing(world.out)
    async with world.consuming(handle):
        (first,) = await world.letters()
        await world.ask("redrive", first)
        (second,) = await world.letters(redrives=1)
        await world.records_of(world.dlq, 2)
        handle.mended = True
        await world.ask("redrive", second)
        await world.wait_for_inbox(2)
        await world.unparked()
    assert second["_id"] == f"{first['_id']}~1"
    assert second["previous"] == first["_id"]
    (first,) = await world.rows("dead_letters", _id=first["_id"])
    assert first["outcome"]["deadLetter"] == second["_id"]
    assert await world.seen("bad") == [0, 1]


async def test_a_redrive_that_fails_for_the_moment_is_retried(world: World) -> None:
    await world.send(event("bad", n=0, fail=6), event("bad", n=1))
    handle = Failing(world.out)
    async with world.consuming(handle):
        (letter,) = await world.letters()
        await world.ask("redrive", letter)
        await world.wait_for_inbox(2)
        await world.unparked()
    assert handle.calls[0] == 7
    assert await world.seen("bad") == [0, 1]
    (letter,) = await world.rows("dead_letters")
    assert letter["outcome"]["status"] == "processed"


async def test_a_discarded_event_has_no_effect_nor_has_a_copy_of_it_and_the_rest_drains(world: World) -> None:
    bad = event("bad", n=0, permanent=True)
    handle = Failing(world.out)
    await world.send(bad, event("bad", n=1), bad, event("bad", n=2))
    async with world.consuming(handle):
        (letter,) = await world.letters()
        handle.mended = True
        await world.ask("discard", letter)
        await world.wait_for_inbox(3)
        await world.unparked()
        await world.send(bad, event("bad", n=3))
        await world.wait_for_inbox(4)
    assert await world.seen("bad") == [1, 2, 3]
    (letter,) = await world.rows("dead_letters")
    assert letter["status"] == letter["outcome"]["status"] == "discarded"


async def test_the_queue_may_fail_at_every_event_and_still_keeps_its_order(world: World) -> None:
    handle = Failing(world.out)
    await world.send(*(event("bad", n=n, fail=n % 3) for n in range(12)))
    async with world.consuming(handle):
        await world.wait_for_inbox(12, within=60)
        await world.unparked()
    assert await world.seen("bad") == list(range(12))
    assert of_patient(await world.emitted(12), "bad") == list(range(12))


async def test_an_undecodable_record_parks_its_key_and_can_be_edited_and_redriven(world: World) -> None:
    await world.send(event("a", n=1))
    await world.send_raw(Message(world.topic, b"a", b"{}", (("organizationId", b"org"),)))
    await world.send(event("a", n=3), event("b", n=1))
    async with world.consuming():
        (letter,) = await world.letters(reason="undecodable")
        await world.wait_for_inbox(2)
        assert await world.seen("a") == [1]
        await world.database["dead_letters"].update_one(
            {"_id": letter["_id"]}, {"$set": {"edited": encode(event("a", n=2))}}
        )
        await world.ask("redrive", letter)
        await world.wait_for_inbox(4)
        await world.unparked()
    assert await world.seen("a") == [1, 2, 3]
    (dead,) = await world.records_of(world.dlq, 1)
    assert dead.value == b"{}"


async def test_a_discarded_undecodable_record_is_not_parked_again_when_it_is_redelivered(world: World) -> None:
    await world.send_raw(Message(world.topic, b"a", b"{}", (("organizationId", b"org"),)))

    async with world.consuming():
        (letter,) = await world.letters()
        await world.ask("discard", letter)
        await world.unparked()
    world.group = f"{world.group}-again"
    await world.send(event("a", n=1))
    async with world.consuming():
        await world.wait_for_inbox(1)
        await world.unparked()
    assert await world.seen("a") == [1]


async def test_an_event_the_store_refuses_is_found_and_becomes_a_dead_letter(world: World) -> None:
    fast = appending(world.out)

    def handle(state: State | None, delivery: Delivery[MedicalEvent]) -> Any:
        change = fast(state, delivery)
        if delivery.event.data.get("poison"):
            assert isinstance(change, Change)
            return Change(row={"too-large": 2**70}, state=change.state)
        return change

    await world.send(*(event(f"p{n % 10}", n=n, poison=n == 55) for n in range(100)))
    async with world.consuming(handle) as consumer:
        await world.wait_for_inbox(95)
        (letter,) = await world.letters()
        assert consumer.status().stopped_patients == 0
    assert letter["reason"] == "retries-exhausted"
    assert await world.seen("p5") == [5, 15, 25, 35, 45]
    assert len(await world.rows("parked_events")) == 4


async def test_a_coroutine_that_does_not_end_is_a_failure_at_its_deadline(world: World) -> None:
    world.subscription = {"retry": RetryPolicy(retries=0), "handler_deadline": timedelta(milliseconds=200)}
    fast = appending(world.out)

    def handle(state: State | None, delivery: Delivery[MedicalEvent]) -> Any:
        return asyncio.Event().wait() if delivery.event.data["n"] == 0 else fast(state, delivery)

    await world.send(event("slow", n=0), event("slow", n=1), event("p", n=2))
    async with world.consuming(handle):
        await world.wait_for_inbox(1)
        (letter,) = await world.letters()
    assert letter["failure"]["class"].endswith("HandlerTimedOut")


async def test_slow_handlers_of_a_queue_drain_it_in_order(world: World) -> None:
    fast = Failing(world.out)

    def handle(state: State | None, delivery: Delivery[MedicalEvent]) -> Any:
        async def slowly() -> Any:
            await asyncio.sleep(0.02)
            return fast(state, delivery)

        return slowly()

    await world.send(*(event("bad", n=n, fail=2 if n in (1, 4) else 0) for n in range(8)))
    async with world.consuming(handle):
        await world.wait_for_inbox(8)
        await world.unparked()
    assert await world.seen("bad") == list(range(8))


async def test_a_crash_between_commit_and_emission_of_a_drained_queue_emits_it_again_in_order(world: World) -> None:
    handle = Failing(world.out)
    await world.send(*(event("bad", n=n, fail=1 if n == 0 else 0) for n in range(5)))

    class Swallows:
        async def publish_each(self, messages: Any) -> Any:
            await asyncio.Event().wait()

    world.limits = Limits(drain_timeout=timedelta(milliseconds=100), look_interval=timedelta(milliseconds=50))
    async with world.consuming(handle, publisher=Swallows()):
        await world.wait_for_inbox(5)
    assert len(await world.rows("parked_events")) == 5
    await world.send(event("bad", n=5))
    async with world.consuming(handle):
        await world.wait_for_inbox(6)
        await world.unparked()
        out = await world.emitted(6)
    assert of_patient(out, "bad") == list(range(6))
    assert await world.seen("bad") == list(range(6))


async def test_a_dead_letter_whose_publication_was_cut_off_is_published_by_the_next_owner(world: World) -> None:
    class Swallows:
        async def publish_each(self, messages: Any) -> Any:
            await asyncio.Event().wait()

    world.limits = Limits(drain_timeout=timedelta(milliseconds=100), look_interval=timedelta(milliseconds=50))
    await world.send(event("bad", n=0, permanent=True))
    async with world.consuming(Failing(world.out), publisher=Swallows()):
        await world.letters()
    async with world.consuming(Failing(world.out)):
        await world.records_of(world.dlq, 1)

        async def settled() -> bool:
            return bool((await world.rows("parked_patients"))[0]["status"] == "dead-lettered")

        await eventually(settled)
    (letter,) = await world.rows("dead_letters")
    assert letter["publishedAt"] is not None


async def test_a_dead_letter_that_the_broker_refuses_is_kept_in_the_store_and_holds_nobody_up(world: World) -> None:
    class Refuses:
        async def publish_each(self, messages: Any) -> Any:
            return [MessageRefused("too large") for _ in messages]

    await world.send(event("bad", n=0, permanent=True))
    async with world.consuming(Failing(world.out), publisher=Refuses()):
        (letter,) = await world.letters()

        async def passed() -> bool:
            return await world.committed() == 1

        await eventually(passed, what="the offset passes")
    assert letter["publishedAt"] is None
    handle = Failing(world.out)
    handle.mended = True
    async with world.consuming(handle):
        await world.records_of(world.dlq, 1)
        await world.ask("redrive", letter)
        await world.wait_for_inbox(1)
        await world.unparked()


@pytest.mark.timeout(300)
async def test_too_many_failures_in_a_row_stop_the_consumer_and_a_restart_does_not_forget_it(world: World) -> None:
    await world.send(*(event(f"p{n}", n=n, permanent=True) for n in range(60)))
    async with world.consuming(Failing(world.out)):
        await world.letters(60)
    await world.send(*(event(f"q{n}", n=n, permanent=True) for n in range(300)))
    async with world.consuming(Failing(world.out)) as consumer:

        async def stopped() -> bool:
            row = await world.database["consumers"].find_one({"_id": world.group})
            return row is not None and row["paused"] is not None and consumer.status().stopped is not None

        await eventually(stopped)
    async with world.consuming(Failing(world.out)) as consumer:

        async def knows() -> bool:
            return consumer.status().stopped is not None

        await eventually(knows)
        assert await world.database["dead_letters"].count_documents({}) == 100
        mended = {"paused": None, "failures": {"consecutive": 0, "window": []}}
        await world.database["consumers"].update_one({"_id": world.group}, {"$set": mended, "$inc": {"version": 1}})

        async def stops_again() -> bool:
            return await world.database["dead_letters"].count_documents({}) == 200

        await eventually(stops_again, what="another hundred, and then it stops again")


@pytest.mark.timeout(120)
async def test_a_parked_patient_does_not_hold_the_others_up_for_long_queues(world: World) -> None:
    handle = Failing(world.out)
    world.subscription = {"retry": QUICK}
    await world.send(*(event("bad", n=n, permanent=n == 0) for n in range(1000)))
    async with world.consuming(handle):
        (letter,) = await world.letters()

        async def all_parked() -> bool:
            return await world.committed() == 1000

        await eventually(all_parked)
        handle.mended = True
        await world.ask("redrive", letter)
        await world.send(*(event("bad", n=n) for n in range(1000, 1500)))
        await world.wait_for_inbox(1500, within=60)
        await world.unparked(within=60)
    assert await world.seen("bad") == list(range(1500))
    assert of_patient(await world.emitted(1500), "bad") == list(range(1500))
