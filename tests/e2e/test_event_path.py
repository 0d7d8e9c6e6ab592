"""One event, from the post to the line in the patient's history."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from aiokafka import AIOKafkaConsumer

from carebus_common.contracts.processed import ProcessedEvent
from carebus_common.contracts.topics import EVENTS_PROCESSED
from carebus_local.system import System

from .conftest import Hospital, eventually, new_event


async def test_a_posted_event_becomes_a_processed_event_a_message_and_a_history_line(
    system: System, hospital: Hospital
) -> None:
    event = new_event("p/1", "lab-result", code="2345-7", value=9.1, unit="mmol/L", referenceRange={"high": 5.6})
    answer = await hospital.post(event)
    assert answer.status_code == 202
    receipt = answer.json()["data"]
    assert receipt["eventId"] == event["eventId"]
    assert receipt["status"] == "accepted"
    assert receipt["statusUrl"].startswith(system.urls["gateway"])

    statuses: list[str] = []

    async def processed() -> bool:
        status = await hospital.http.get(receipt["statusUrl"], headers=hospital.sender)
        if status.status_code == 503:  # the group is being rebalanced, just after the start
            assert "Retry-After" in status.headers
            return False
        assert status.status_code == 200, status.text
        statuses.append(status.json()["data"]["status"])
        return statuses[-1] == "processed"

    await eventually(processed, within=15, what="the status is processed")
    assert set(statuses) <= {"accepted", "processed"}

    async def in_history() -> bool:
        return (await hospital.get("/patients/p%2F1")).status_code == 200

    await eventually(in_history, within=15, what="the patient is known")
    assert await hospital.history("p/1") == [event["eventId"]]
    patient = (await hospital.get("/patients/p%2F1")).json()["data"]
    assert patient["flagTotal"] == 1

    message = await _processed_message(system, event["eventId"])
    assert message.data == event["data"]
    assert message.organization_id == hospital.organization_id
    assert [flag.direction for flag in message.processing.flags] == ["high"]


async def test_a_stay_opens_moves_and_closes_in_the_history(hospital: Hospital) -> None:
    for event_type, data in (
        ("admission", {"location": "ER"}),
        ("transfer", {"to": "ICU"}),
        ("treatment-initiated", {"code": "T1"}),
        ("discharge", {}),
    ):
        await hospital.send(new_event("p1", event_type, **data))
    await hospital.all_processed(within=20)
    stays = [row["stay"] async for row in hospital.history_rows("p1")]
    assert [(stay["status"], stay["location"]) for stay in stays] == [
        ("open", "ER"),
        ("open", "ICU"),
        ("open", "ICU"),
        ("closed", "ICU"),
    ]
    assert (await hospital.get("/patients/p1")).json()["data"]["stay"]["status"] == "closed"


async def test_two_hundred_parallel_copies_of_one_event_have_one_effect(hospital: Hospital) -> None:
    event = new_event("p1", n=1)
    answers = await asyncio.gather(*(hospital.post(event) for _ in range(200)))
    assert Counter(answer.status_code for answer in answers) == {202: 200}
    hospital.accepted["p1"] = [event["eventId"]]
    await hospital.send(new_event("p1", n=2))
    await hospital.all_processed(within=20)


async def test_the_same_event_id_with_another_payload_is_accepted_and_the_first_one_stands(hospital: Hospital) -> None:
    event = new_event("p1", n=1)
    await hospital.send(event)
    assert (await hospital.post({**event, "data": {"n": 2}})).status_code == 202
    await hospital.send(new_event("p1", n=3))
    await hospital.all_processed(within=20)
    rows: list[dict[str, Any]] = [row async for row in hospital.history_rows("p1")]
    assert [row["data"]["n"] for row in rows] == [1, 3]


async def test_another_tenant_finds_nothing_and_is_told_nothing(hospital: Hospital) -> None:
    event = new_event("p1", n=1)
    await hospital.send(event)
    await hospital.all_processed(within=20)
    other = Hospital(hospital.system, hospital.http)
    for path in ("/patients/p1", f"/events/{event['eventId']}"):
        found, missing = await other.get(path), await other.get(path[:-1] + "0")
        assert found.status_code == 404
        assert found.json()["error"]["code"] == missing.json()["error"]["code"] == "not-found"
        assert found.json()["error"]["message"] == missing.json()["error"]["message"]
    assert (await other.get("/patients/p1/history")).json().get("data", []) == []


async def _processed_message(system: System, event_id: str) -> ProcessedEvent:
    consumer = AIOKafkaConsumer(
        EVENTS_PROCESSED.name, bootstrap_servers=system.parts.kafka_bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        async with asyncio.timeout(20):
            async for record in consumer:
                message = ProcessedEvent.model_validate_json(record.value)
                if str(message.event_id) == event_id:
                    assert record.key == message.patient_id.encode()
                    return message
    finally:
        await consumer.stop()
    raise AssertionError("no such message")
