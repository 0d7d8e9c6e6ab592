"""The consumer's state and resumption, and the topics' tails, on a real broker."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from carebus_common.logging import patient_hash
from carebus_local.testing import create_topic, eventually, random_name


async def produce(world: Any, count: int, *, partition: int = 0, **record: Any) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=world.bootstrap)
    await producer.start()
    try:
        for n in range(count):
            sent = {"value": b'{"n": %d, "name": "Canary"}' % n, "key": b"p-%d" % n, **record}
            await producer.send_and_wait(world.topic, partition=partition, **sent)
    finally:
        await producer.stop()


async def commit(world: Any, offsets: dict[int, int]) -> None:
    consumer = AIOKafkaConsumer(bootstrap_servers=world.bootstrap, group_id=world.group, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = {TopicPartition(world.topic, p): offset for p, offset in offsets.items()}
        consumer.assign(list(partitions))
        await consumer.commit(partitions)
    finally:
        await consumer.stop()


async def view_of(world: Any) -> Any:
    """The view once the broker answers: a fresh one cannot tell of groups at once."""

    async def complete() -> Any:
        view = await world.data("/consumer")
        return view if view["partitions"] else None

    return await eventually(complete)


async def ends(world: Any) -> dict[int, int]:
    return {each["partition"]: each["end"] for each in (await view_of(world))["partitions"]}


async def test_the_view_says_how_far_behind_and_what_waits(world: Any, kit: Any) -> None:
    await produce(world, 5)
    await world.insert(kit.dead_letter(0), kit.dead_letter(1), kit.dead_letter(2, status="discarded"))
    await world.database["parked_patients"].insert_many(
        [{"_id": f"org-a/p{n}", "since": kit.noon + timedelta(minutes=n)} for n in (2, 1, 3)]
    )
    await world.database["parked_events"].insert_one({"_id": "org-a/p1#0"})
    await world.database["dead_letter_requests"].insert_one({"_id": "r", "deadLetterIds": ["x", "y"]})

    view = await view_of(world)

    end = {each["partition"]: each["end"] for each in view["partitions"]}
    assert view == {
        "group": world.group,
        "topic": world.topic,
        "paused": None,
        "partitions": [{"partition": p, "committed": None, "end": end[p], "lag": end[p]} for p in (0, 1)],
        "lag": sum(end.values()),
        "parkedPatients": 3,
        "parkedEvents": 1,
        "openDeadLetters": 2,
        "pendingRequests": 1,
        "oldestWaitingSince": "2026-03-01T12:01:00Z",
        "thisReplica": {"partitions": [0, 1], "inFlight": 7, "storeAway": False, "brokerAway": False},
    }
    assert end[0] >= 5


async def test_lag_counts_from_what_the_group_has_committed(world: Any) -> None:
    await produce(world, 3)
    await produce(world, 2, partition=1)
    end = await ends(world)
    await commit(world, {0: end[0] - 2})

    async def counted() -> Any:
        view = await world.data("/consumer")
        return view if view["partitions"][0]["committed"] is not None else None

    # An answer is repeated for a second.
    view = await eventually(counted)

    assert [each["committed"] for each in view["partitions"]] == [end[0] - 2, None]
    assert [each["lag"] for each in view["partitions"]] == [2, end[1]]
    assert view["lag"] == 2 + end[1]


async def test_resuming_forgets_the_failures_and_tells_every_replica(world: Any) -> None:
    stopped = {"reason": "failures", "detail": "100 events in a row failed", "at": None}
    await world.database["consumers"].insert_many(
        [
            {"_id": name, "paused": stopped, "failures": {"consecutive": 100, "window": [[5, 5]]}, "version": 7}
            for name in (world.group, "another")
        ]
    )
    assert (await world.data("/consumer"))["paused"] == stopped

    answer = await world.post("/consumer/resume", {"reason": "deployed the fix"}, sub="anna")

    assert answer.json()["data"]["paused"] is None
    rows = {row["_id"]: row for row in await world.rows("consumers")}
    assert rows[world.group] == {
        "_id": world.group,
        "paused": None,
        "failures": {"consecutive": 0, "window": []},
        "version": 8,
    }
    assert rows["another"]["paused"] == stopped
    (audited,) = await world.rows("ops_audit")
    assert (audited["action"], audited["target"], audited["reason"]) == ("resume", [world.group], "deployed the fix")


async def test_a_consumer_that_never_stopped_is_resumed_harmlessly(world: Any) -> None:
    answer = await world.post("/consumer/resume", {"reason": "to be sure"})

    assert (answer.status_code, answer.json()["data"]["paused"]) == (200, None)
    assert await world.rows("consumers") == []


async def test_a_tail_shows_the_newest_records_masked_and_goes_on_from_there(world: Any) -> None:
    await produce(world, 7)
    headers = [
        ("organizationId", b"org-a"),
        ("ce_type", b"note"),
        ("ce_id", b"e-1"),
        ("x-nurse", b"Canary"),
        ("dlq.reason", b"permanent"),
    ]
    await produce(world, 1, partition=1, headers=headers)

    answer = await world.get(f"/topics/{world.topic}/tail?limit=3")

    page = answer.json()
    assert "Canary" not in answer.text
    assert [record["partition"] for record in page["data"]] == [0, 0, 1]
    last = page["data"][-1]
    assert last["payload"] == {"n": 0, "name": "•••"}
    assert (last["organizationId"], last["type"], last["eventId"]) == ("org-a", "note", "e-1")
    assert last["patient"] == patient_hash("org-a", "p-0")
    assert last["dlq"] == {"reason": "permanent"}
    assert page["data"][0]["dlq"] is None

    cursor = page["page"]["next"]
    quiet = (await world.get(f"/topics/{world.topic}/tail?cursor={cursor}")).json()
    assert quiet["data"] == []
    await produce(world, 5)
    first = (await world.get(f"/topics/{world.topic}/tail?limit=3&cursor={cursor}")).json()
    rest = (await world.get(f"/topics/{world.topic}/tail?limit=3&cursor={first['page']['next']}")).json()
    offsets = [record["offset"] for record in first["data"] + rest["data"]]
    assert len(first["data"]) == 3
    assert offsets == list(range(page["data"][1]["offset"] + 1, page["data"][1]["offset"] + 6))


async def test_a_tail_passes_over_records_that_are_no_events_and_large_ones(world: Any) -> None:
    await produce(world, 1, value=b"\xffCanary", key=None)
    await produce(world, 1, value=None)
    await produce(world, 1, value=b'{"x": "' + b"y" * 100_000 + b'"}')
    await produce(world, 1, value=b"[" * 30_000 + b"]" * 30_000, headers=[("dlq.x", b"\xff")])

    answer = await world.get(f"/topics/{world.topic}/tail?limit=4")

    assert answer.status_code == 200
    shown = [(record["payload"], record["payloadBytes"]) for record in answer.json()["data"]]
    assert shown == [("•••", 7), (None, 0), (None, 100_009), ("•••", 60_000)]
    assert answer.json()["data"][0]["patient"] is None


async def test_looking_moves_nobodys_offsets(world: Any) -> None:
    await produce(world, 3)
    await world.get(f"/topics/{world.topic}/tail")

    assert {each["committed"] for each in (await view_of(world))["partitions"]} == {None}


async def test_only_the_services_own_topics_are_shown(world: Any) -> None:
    other = random_name("other")
    await create_topic(world.bootstrap, other, partitions=1)

    for topic in (other, "not-there", "__consumer_offsets", "%0d%0a"):
        assert (await world.get(f"/topics/{topic}/tail")).status_code == 404, topic


async def test_a_tails_cursor_is_of_its_topic(world: Any) -> None:
    cursor = (await world.get(f"/topics/{world.topic}/tail")).json()["page"]["next"]

    assert (await world.get(f"/topics/not-there/tail?cursor={cursor}")).status_code == 400
    assert (await world.get(f"/audit?cursor={cursor}")).status_code == 400


async def test_with_the_broker_away_the_view_still_tells_what_the_store_knows(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter())
    async with world.without_broker() as http:
        headers = {"Authorization": world.issuer.bearer("carebus", ["operator"])}
        view: httpx.Response = await http.get("/ops/example/consumer", headers=headers)
        tail = await http.get(f"/ops/example/topics/{world.topic}/tail", headers=headers)

    data = view.json()["data"]
    assert (view.status_code, data["lag"], data["partitions"], data["openDeadLetters"]) == (200, None, [], 1)
    assert (tail.status_code, tail.json()["error"]["code"]) == (503, "unavailable")
