from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import pytest

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


async def pages(world: Any, url: str, **query: Any) -> list[list[dict[str, Any]]]:
    """Every page of a list, followed by its cursors."""
    found = []
    while True:
        answer = await world.get(f"{url}?{urlencode(query)}")
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["data"])
        cursor = answer.json()["page"]["next"]
        if cursor is None:
            return found
        query["cursor"] = cursor


def minutes(rows: list[dict[str, Any]]) -> list[int]:
    return [(datetime.fromisoformat(row["ts"]) - NOON) // MINUTE for row in rows]


async def test_an_event_comes_back_as_it_was_sent_with_what_became_of_it(world: Any, events: Any) -> None:
    flag = {"kind": "vital-signs", "code": "hr", "value": 140.0, "unit": "/min", "low": 50.0, "high": 120.0}
    stay = {"stayId": "s", "status": "open", "openedAt": NOON, "location": "ward 4"}
    event = events(
        type="VITAL_SIGNS",
        ts="2026-03-01T07:00:00.123-05:00",
        data={"heart.rate": 140, "deep": [{"a": None}], "text": "é\r\n"},
        stay=stay,
        processing={"message": "flagged", "late": True, "flags": [{**flag, "direction": "high"}]},
    )
    await world.apply([event])

    answer = await world.get("/patients/patient-1/history")

    assert answer.json() == {
        "data": [
            {
                "eventId": str(event.event_id),
                "status": "processed",
                "patientId": "patient-1",
                "type": "VITAL_SIGNS",
                "ts": "2026-03-01T12:00:00.123000Z",
                "receivedAt": "2026-03-01T12:00:00Z",
                "processedAt": "2026-03-01T12:00:01Z",
                "late": True,
                "message": "flagged",
                "flags": [{**flag, "direction": "high"}],
                "data": {"heart.rate": 140, "deep": [{"a": None}], "text": "é\r\n"},
                "stay": {
                    "stayId": "s",
                    "status": "open",
                    "openedAt": "2026-03-01T12:00:00Z",
                    "closedAt": None,
                    "location": "ward 4",
                    "transfers": 0,
                    "treatments": 0,
                    "medications": 0,
                },
            }
        ],
        "page": {"next": None},
    }


@pytest.mark.parametrize(("order", "expected"), [({}, range(24, -1, -1)), ({"order": "asc"}, range(25))])
@pytest.mark.parametrize("limit", [1, 7, 25, 200])
async def test_pages_hold_every_event_once_in_order(
    world: Any, events: Any, order: dict[str, str], expected: range, limit: int
) -> None:
    await world.apply(events(ts=NOON + MINUTE * (n * 7 % 25)) for n in range(25))

    found = await pages(world, "/patients/patient-1/history", limit=limit, **order)

    assert [minute for page in found for minute in minutes(page)] == list(expected)
    assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)


async def test_pages_split_events_of_one_moment_without_losing_any(world: Any, events: Any) -> None:
    everything = [events() for _ in range(10)]
    await world.apply(everything)

    for order in ("asc", "desc"):
        found = await pages(world, "/patients/patient-1/history", limit=3, order=order)
        ids = [row["eventId"] for page in found for row in page]
        assert sorted(ids) == sorted(str(event.event_id) for event in everything)


async def test_pages_do_not_shift_when_events_arrive_between_them(world: Any, events: Any) -> None:
    await world.apply(events(ts=NOON + MINUTE * n) for n in range(0, 20, 2))
    first = (await world.get("/patients/patient-1/history?limit=4")).json()

    # Newer than all, between what was seen, and between what is still to come.
    await world.apply(events(ts=NOON + MINUTE * n) for n in (30, 17, 5))

    second = (await world.get(f"/patients/patient-1/history?limit=200&cursor={first['page']['next']}")).json()
    assert minutes(first["data"]) == [18, 16, 14, 12]
    assert minutes(second["data"]) == [10, 8, 6, 5, 4, 2, 0]


async def test_a_page_of_large_events_is_shorter_and_none_is_lost(world: Any, events: Any) -> None:
    everything = [events(ts=NOON + MINUTE * n, data={"scan": "x" * 250_000}) for n in range(40)]
    await world.apply(everything)

    found = await pages(world, "/patients/patient-1/history", limit=200)

    assert [len(page) for page in found] == [16, 16, 8]
    assert [row["eventId"] for page in found for row in page] == [str(event.event_id) for event in everything[::-1]]


@pytest.mark.parametrize("asked", ["lab-result", "LAB_RESULT"])
async def test_a_type_selects_both_of_its_spellings_and_nothing_like_it(world: Any, events: Any, asked: str) -> None:
    await world.apply(events(type=t) for t in ("lab-result", "LAB_RESULT", "lab-result.v2", "lab", "admission"))

    (page,) = await pages(world, "/patients/patient-1/history", type=asked)

    assert sorted(row["type"] for row in page) == ["LAB_RESULT", "lab-result"]


async def test_a_range_holds_its_first_moment_and_not_its_last(world: Any, events: Any) -> None:
    await world.apply(events(ts=NOON + MINUTE * n, type="a" if n % 2 else "b") for n in range(10))
    span = {"from": "2026-03-01T13:02:00+01:00", "to": "2026-03-01T12:06:00Z"}

    for order, expected in (("asc", [2, 3, 4, 5]), ("desc", [5, 4, 3, 2])):
        for limit in (1, 3, 50):
            found = await pages(world, "/patients/patient-1/history", order=order, limit=limit, **span)
            assert [minute for page in found for minute in minutes(page)] == expected
    (both,) = await pages(world, "/patients/patient-1/history", type="a", **span)
    assert minutes(both) == [5, 3]


async def test_a_filter_that_matches_nothing_gives_an_empty_list(world: Any, events: Any) -> None:
    await world.apply([events()])

    answer = await world.get("/patients/patient-1/history?type=discharge")

    assert (answer.status_code, answer.json()) == (200, {"data": [], "page": {"next": None}})


async def test_an_unknown_patient_has_neither_history_nor_summary(world: Any) -> None:
    for url in ("/patients/nobody", "/patients/nobody/history"):
        answer = await world.get(url)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not-found")


async def test_a_patient_whose_first_event_is_parked_is_not_known_yet(world: Any) -> None:
    await world.database["patients"].insert_one(
        {"_id": "org-a/p", "organizationId": "org-a", "patientId": "p", "position": None, "parked": True}
    )

    assert (await world.get("/patients/p")).status_code == 404


async def test_a_patient_at_a_glance(world: Any, events: Any) -> None:
    flag = {"kind": "lab-result", "code": "K", "value": 6.1, "direction": "high"}
    flagged = events(type="lab-result", ts=NOON + MINUTE, processing={"flags": [flag]})
    await world.apply(
        [
            events(type="admission", stay={"stayId": "s", "status": "open", "openedAt": NOON}),
            flagged,
            events(type="LAB_RESULT", processing={"late": True}, receivedAt=NOON + MINUTE),
        ]
    )

    assert (await world.get("/patients/patient-1")).json() == {
        "data": {
            "patientId": "patient-1",
            "stay": None,
            "flags": [
                {**flag, "unit": None, "low": None, "high": None, "eventId": str(flagged.event_id)}
                | {"ts": "2026-03-01T12:01:00Z"}
            ],
            "flagTotal": 1,
            "counts": {"lab-result": 2, "admission": 1},
            "otherTypes": 0,
            "eventTotal": 3,
            "lateTotal": 1,
            "oldestTs": "2026-03-01T12:00:00Z",
            "newestTs": "2026-03-01T12:01:00Z",
            "firstSeenAt": "2026-03-01T12:00:00Z",
            "lastSeenAt": "2026-03-01T12:01:00Z",
        }
    }


@pytest.mark.parametrize("patient_id", ["a/b", "a%2Fb", "%", "...", "é 患者", "a\r\nb", "$ne", "a?b#c", "x" * 128])
async def test_any_patient_id_can_be_asked_for(world: Any, events: Any, patient_id: str) -> None:
    await world.apply([events(patientId=patient_id), events(patientId="other")])
    url = f"/patients/{quote(patient_id, safe='')}"

    assert (await world.get(url)).json()["data"]["patientId"] == patient_id
    assert [row["patientId"] for row in (await world.get(f"{url}/history")).json()["data"]] == [patient_id]


async def test_an_event_is_found_by_its_id_with_its_receipt_or_without(world: Any, events: Any) -> None:
    event = events()
    await world.apply([event])

    for query in ("", "?partition=3&offset=12345"):
        answer = await world.get(f"/events/{str(event.event_id).upper()}{query}")
        assert (answer.status_code, answer.json()["data"]["eventId"]) == (200, str(event.event_id))


async def test_a_head_request_is_answered_like_get_without_the_body(world: Any, events: Any) -> None:
    await world.apply([events()])

    authorization = {"Authorization": world.issuer.bearer("org-a", ["admin"])}
    answer = await world.http.head("/patients/patient-1", headers=authorization)

    assert (answer.status_code, answer.content) == (200, b"")


async def test_many_readers_at_once_get_their_own_tenants_events(world: Any, events: Any) -> None:
    organizations = [f"org-{n}" for n in range(8)]
    await world.apply(events(organizationId=o, data={"of": o}) for o in organizations for _ in range(3))

    answers = await asyncio.gather(
        *(world.get("/patients/patient-1/history", organization=o) for o in organizations * 5)
    )

    for organization, answer in zip(organizations * 5, answers, strict=True):
        assert [row["data"]["of"] for row in answer.json()["data"]] == [organization] * 3


async def test_a_discarded_event_is_no_history(world: Any, events: Any) -> None:
    event = events()
    await world.apply([event])
    before = (await world.get("/patients/patient-1/history")).json()
    event_id = uuid4()
    await world.database["patient_histories"].insert_one(
        {
            "_id": f"org-a/{event_id}",
            "organizationId": "org-a",
            "eventId": str(event_id),
            "source": {"topic": "topic", "partition": 0, "offset": 9},
            "contentHash": b"hash",
            "messages": [],
            "discardedAt": event.ts,
            "processedAt": event.ts,
        }
    )

    for roles in (["admin"], ["event-sender"], ["patient"]):
        assert (await world.get(f"/events/{event_id}", roles=roles)).status_code == 404
    assert (await world.get("/patients/patient-1/history")).json() == before
    assert (await world.get("/patients/patient-1")).json()["data"]["eventTotal"] == 1
    assert (await world.get("/patients/None/history")).status_code == 404


async def test_several_patients_are_read_at_once_whatever_their_ids_hold(world: Any, events: Any) -> None:
    strange = ["a,b", "a%2Cb", "é/ ?&#", "p" * 128]
    await world.apply([events(patientId=patient) for patient in [*strange, "other"]])
    ids = ",".join(quote(patient, safe="") for patient in [*strange, "nobody"])

    answer = await world.get(f"/patients?{urlencode({'patientId': ids})}")

    assert answer.status_code == 200, answer.text
    assert sorted(one["patientId"] for one in answer.json()["data"]) == sorted(strange)
    (alone,) = (one for one in answer.json()["data"] if one["patientId"] == "a,b")
    assert {"data": alone} == (await world.get("/patients/a%2Cb")).json()


async def test_a_patient_among_several_sees_itself_only(world: Any, events: Any) -> None:
    await world.apply([events(patientId=patient) for patient in ("p-1", "p-2")])

    answer = await world.get("/patients?patientId=p-1,p-2", roles=["patient"], patientId="p-2")

    assert [one["patientId"] for one in answer.json()["data"]] == ["p-2"]


@pytest.mark.parametrize("ids", ["", ",", "a,", "%25", "%25ff", ",".join("p" * 51)])
async def test_a_list_of_patients_has_a_form(world: Any, ids: str) -> None:
    assert (await world.get(f"/patients?patientId={ids}")).status_code == 400
