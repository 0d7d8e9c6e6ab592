"""What operators read of dead letters: lists, summaries, one of them, and whose they see."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Any

import pytest

from carebus_common.logging import patient_hash


async def test_a_list_is_newest_first_and_shows_no_payload_and_no_patient(world: Any, kit: Any) -> None:
    ids = await world.insert(*(kit.dead_letter(n, eventId=f"e-{n}") for n in range(3)))

    answer = await world.get("/dead-letters")

    items = answer.json()["data"]
    assert [item["id"] for item in items] == ids[::-1]
    assert items[0] == {
        "id": "events-0-2",
        "status": "open",
        "reason": "permanent",
        "blocking": True,
        "organizationId": "org-a",
        "eventId": "e-2",
        "patient": patient_hash("org-a", "patient-2"),
        "type": "note",
        "source": {"topic": "events", "partition": 0, "offset": 2},
        "failure": {
            "class": "ValueError",
            "message": "",
            "fingerprint": "aaaaaaaaaaaa",
            "where": "handlers/apply.py:apply:12",
            "attempts": 4,
            "firstFailedAt": "2026-03-01T12:00:00Z",
            "lastFailedAt": "2026-03-01T12:01:00Z",
        },
        "redrives": 0,
        "createdAt": "2026-03-01T12:00:02Z",
        "outcome": None,
        "previous": None,
    }
    assert "patient-2" not in answer.text
    assert "Canary" not in answer.text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", {0, 1, 2, 5}),
        ("?status=all", {0, 1, 2, 3, 4, 5}),
        ("?status=redriven", {3}),
        ("?status=discarded", {4}),
        ("?fingerprint=bbbbbbbbbbbb", {1}),
        ("?type=lab-result", {2}),
        ("?organizationId=org-b", {5}),
        ("?organizationId=org-c", set()),
        ("?since=2026-03-01T12:00:01Z", {1, 2, 5}),
        ("?until=2026-03-01T12:00:01Z", {0}),
        ("?since=2026-03-01T13:00:01%2B01:00&until=2026-03-01T12:00:02Z", {1}),
        ("?status=all&since=2026-03-01T12:00:02Z&until=2026-03-01T12:00:05Z", {2, 3, 4}),
    ],
)
async def test_a_list_is_filtered_by_what_is_asked_for(world: Any, kit: Any, query: str, found: set[int]) -> None:
    await world.insert(
        kit.dead_letter(0),
        kit.dead_letter(1, failure={"fingerprint": "bbbbbbbbbbbb"}),
        kit.dead_letter(2, type="lab-result"),
        kit.dead_letter(3, status="redriven"),
        kit.dead_letter(4, status="discarded"),
        kit.dead_letter(5, organizationId="org-b"),
    )

    items = await world.data(f"/dead-letters{query}")

    assert {item["source"]["offset"] for item in items} == found
    assert [item["createdAt"] for item in items] == sorted((item["createdAt"] for item in items), reverse=True)


@pytest.mark.parametrize("status", ["open", "all"])
async def test_pages_meet_every_dead_letter_once_also_those_of_one_moment(world: Any, kit: Any, status: str) -> None:
    statuses = ["open", "redriven", "discarded"]
    moments = [kit.noon, kit.noon, kit.noon + timedelta(days=40), kit.noon + timedelta(days=40, milliseconds=1)]
    letters = [
        kit.dead_letter(n, createdAt=moments[n % 4], status="open" if status == "open" else statuses[n % 3])
        for n in range(23)
    ]
    ids = await world.insert(*letters)
    seen: list[str] = []
    cursor = ""
    while True:
        answer = (await world.get(f"/dead-letters?status={status}&limit=4{cursor}")).json()
        assert len(answer["data"]) <= 4
        seen += [item["id"] for item in answer["data"]]
        if answer["page"]["next"] is None:
            break
        cursor = f"&cursor={answer['page']['next']}"
        if len(seen) == 8:
            await world.insert(kit.dead_letter(99, createdAt=kit.noon + timedelta(days=80)))

    assert sorted(seen) == sorted(ids)
    created = {letter["_id"]: letter["createdAt"] for letter in letters}
    assert [created[each] for each in seen] == sorted(created.values(), reverse=True)


async def test_a_patient_is_found_by_hash_and_by_id_only_for_those_who_may_know_it(world: Any, kit: Any) -> None:
    await world.insert(*(kit.dead_letter(n, patientId=f"p-{n % 2}") for n in range(4)))
    hashed = patient_hash("org-a", "p-1")
    phi = {"roles": ["operator-phi"]}

    async def found(query: str, **who: Any) -> Any:
        answer = await world.get(f"/dead-letters?{query}", **who)
        assert "p-1" not in answer.text
        return {item["id"] for item in answer.json()["data"]} if answer.status_code == 200 else answer.status_code

    ones = {"events-1-1", "events-1-3"}
    assert await found(f"patient={hashed}") == ones
    assert await found("patient=p-1") == 403
    assert await found("patient=p-1&organizationId=org-a") == 403
    assert await found("patient=p-1", **phi) == 400
    assert await found("patient=p-1&organizationId=org-a", **phi) == ones
    assert await found("patient=p-1&organizationId=org-b", **phi) == set()
    assert await found("patient=p-1", organization="org-a", **phi) == ones
    assert await found("patient=" + "0" * 16) == set()
    # Searching the payload's values is no way around the masks.
    assert await found("patient=Jane%20Canary&organizationId=org-a", **phi) == set()


async def test_a_patient_id_that_looks_like_a_hash_is_found_by_those_who_may_know_it(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter(patientId="0123456789abcdef"))

    query = "/dead-letters?organizationId=org-a&patient=0123456789abcdef"
    assert len(await world.data(query, roles=["operator-phi"])) == 1
    assert await world.data(query) == []


async def test_the_summary_counts_by_cause(world: Any, kit: Any) -> None:
    other = {"failure": {"fingerprint": "bbbbbbbbbbbb", "class": "KeyError", "message": "said", "where": "x.py:f:1"}}
    await world.insert(
        kit.dead_letter(0, patientId="p"),
        kit.dead_letter(1, patientId="p"),
        kit.dead_letter(2, patientId="q"),
        kit.dead_letter(3, patientId="r", status="redriven"),
        kit.dead_letter(4, patientId=None, blocking=False, reason="undecodable", **other),
        kit.dead_letter(5, status="discarded", **other),
        kit.dead_letter(6, organizationId="org-b", patientId="p", **other),
    )

    assert await world.data("/dead-letters/summary") == [
        {
            "fingerprint": "aaaaaaaaaaaa",
            "errorClass": "ValueError",
            "message": "",
            "where": "handlers/apply.py:apply:12",
            "reason": "permanent",
            "open": 3,
            "redriven": 1,
            "discarded": 0,
            "patients": 2,
            "first": "2026-03-01T12:00:00Z",
            "last": "2026-03-01T12:00:03Z",
            "example": "events-1-3",
        },
        {
            "fingerprint": "bbbbbbbbbbbb",
            "errorClass": "KeyError",
            "message": "said",
            "where": "x.py:f:1",
            "reason": "permanent",
            "open": 2,
            "redriven": 0,
            "discarded": 1,
            "patients": 1,
            "first": "2026-03-01T12:00:04Z",
            "last": "2026-03-01T12:00:06Z",
            "example": "events-0-6",
        },
    ]
    for query in ("?organizationId=org-b", "?since=2026-03-01T12:00:06Z"):
        (row,) = await world.data(f"/dead-letters/summary{query}")
        assert (row["fingerprint"], row["open"], row["patients"]) == ("bbbbbbbbbbbb", 1, 1)
    assert await world.data("/dead-letters/summary", organization="org-c") == []


async def test_one_dead_letter_is_shown_with_its_payload_masked(world: Any, kit: Any) -> None:
    edit = {"by": "x", "at": kit.noon, "reason": "typo", "diff": [{"path": "/data/weight", "op": "replace"}]}
    data = {"name": "Jane Canary", "nested": [{"n": 1, "f": 2.5, "t": True, "nothing": None}, "Canary"]}
    await world.insert(
        kit.dead_letter(
            data=data,
            edits=[edit],
            redrive={"by": "x", "reason": "fixed", "at": kit.noon},
            outcome={"status": "dead-lettered", "at": kit.noon, "deadLetter": "events-0-0~1"},
        )
    )

    answer = await world.get("/dead-letters/events-0-0", roles=["operator-phi"])

    shown = answer.json()["data"]
    assert shown["payload"]["data"] == {
        "name": "•••",
        "nested": [{"n": 0, "f": 0, "t": False, "nothing": None}, "•••"],
    }
    assert shown["payload"]["patientId"] == shown["payload"]["ts"] == "•••"
    assert shown["headers"] == [
        {"name": "ce_type", "value": "note"},
        {"name": "organizationId", "value": "org-a"},
        {"name": "x-nurse", "value": None},
        {"name": "dlq.reason", "value": "�"},
    ]
    assert (shown["attempts"], shown["causes"][0]["class"]) == (4, "ValueError")
    assert shown["edits"] == [{**edit, "at": "2026-03-01T12:00:00Z"}]
    assert shown["redrive"] == {"by": "x", "reason": "fixed", "at": "2026-03-01T12:00:00Z"}
    assert shown["outcome"]["deadLetter"] == "events-0-0~1"
    assert shown["discard"] is None
    assert "Canary" not in answer.text
    assert "patient-0" not in answer.text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (b"", "•••"),
        (b"\xff\xfe", "•••"),
        (b"Jane Canary", "•••"),
        (b"[" * 100_000 + b"]" * 100_000, "•••"),
        (b'{"a": NaN}', "•••"),
        (b'"\\ud800"', "•••"),
        (b"1e400", "•••"),
        (b'{"n": 123456789012345678901234567890}', {"n": 0}),
        (b'"Jane Canary"', "•••"),
        (b'{"a": 1, "a": "Canary"}', {"a": "•••"}),
    ],
)
async def test_a_payload_that_is_no_event_is_masked_too_and_is_revealed_byte_for_byte(
    world: Any, kit: Any, value: bytes | None, shown: Any
) -> None:
    await world.insert(kit.dead_letter(value=value, key=b"\xff", patientId=None, eventId=None, reason="undecodable"))

    answer = await world.get("/dead-letters/events-0-0")
    revealed = await world.post("/dead-letters/events-0-0/reveal", {"reason": "look"}, roles=["operator-phi"])

    assert answer.status_code == 200
    assert answer.json()["data"]["payload"] == shown
    assert answer.json()["data"]["payloadBytes"] == len(value or b"")
    data = revealed.json()["data"]
    assert (data["key"], data["keyEncoding"]) == ("/w==", "base64")
    if value == b'"Jane Canary"':
        assert (data["payload"], data["payloadEncoding"]) == ("Jane Canary", "json")
    elif value is None:
        assert (data["payload"], data["payloadEncoding"]) == (None, None)
    else:
        assert (base64.b64decode(data["payload"]), data["payloadEncoding"]) == (value, "base64")


async def test_a_dead_letter_from_before_failures_were_described_is_listed_and_left_alone(world: Any, kit: Any) -> None:
    new = kit.dead_letter()
    old = {
        name: new[name]
        for name in ("status", "organizationId", "eventId", "patientId", "source", "key", "value", "createdAt")
    }
    await world.insert({**old, "_id": "events/0/0", "reason": "conflict"})

    (item,) = await world.data("/dead-letters")
    assert (item["id"], item["blocking"], item["failure"]["class"]) == ("events/0/0", False, "")
    assert await world.data("/dead-letters/summary") == []
    body = {"filter": {"organizationId": "org-a"}, "reason": "x"}
    for action in ("redrive", "discard"):
        answer = (await world.post(f"/dead-letters/{action}", body)).json()["data"]
        assert (answer["requested"], answer["skipped"][0]["why"]) == (0, "not-redrivable")


async def test_a_deep_payload_is_shown_as_far_as_an_answer_can_hold_it(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter(value=b'{"a":' * 300 + b"1" + b"}" * 300))

    answer = await world.get("/dead-letters/events-0-0")
    revealed = await world.post("/dead-letters/events-0-0/reveal", {"reason": "look"}, roles=["operator-phi"])

    assert answer.status_code == 200
    assert answer.text.count('"a":') == 64
    assert revealed.json()["data"]["payloadEncoding"] == "base64"


async def test_an_operator_sees_the_tokens_organization_and_the_operations_organization_sees_all(
    world: Any, kit: Any
) -> None:
    a, b, unknown = await world.insert(
        kit.dead_letter(0),
        kit.dead_letter(1, organizationId="org-b"),
        kit.dead_letter(2, organizationId=None, patientId=None, eventId=None, blocking=False),
    )

    async def sees(**who: Any) -> set[str]:
        listed = {item["id"] for item in await world.data("/dead-letters", **who)}
        shown = {each for each in (a, b, unknown) if (await world.get(f"/dead-letters/{each}", **who)).is_success}
        assert listed == shown
        return listed

    assert await sees() == {a, b, unknown}
    assert await sees(organization="org-a") == {a}
    assert await sees(organization="org-b") == {b}
    assert await sees(organization="org-c", roles=["operator-phi"]) == set()
    for path in ("/dead-letters", "/dead-letters/summary"):
        answer = await world.get(f"{path}?organizationId=org-b", organization="org-a")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not-found")
    hidden, missing = [await world.get(f"/dead-letters/{each}", organization="org-a") for each in (b, "events-0-77")]
    assert hidden.status_code == missing.status_code == 404
    assert hidden.json()["error"]["message"] == missing.json()["error"]["message"]
