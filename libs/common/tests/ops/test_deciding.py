"""Redrive, discard, reveal, edit: what is asked for, what is refused, and what the audit has of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from carebus_common.errors import Conflict
from carebus_common.logging import patient_hash
from carebus_common.ops.audit import Audit, audit_row
from carebus_common.ops.dead_letters import DeadLetters
from carebus_common.ops.scope import Scope

PHI: dict[str, Any] = {"roles": ["operator-phi"]}
REVEAL = "/dead-letters/events-0-0/reveal"
EDIT = "/dead-letters/events-0-0/edit"


async def redrive(world: Any, *, action: Any = "redrive", who: Any = None, **body: Any) -> Any:
    answer = await world.post(f"/dead-letters/{action}", {"reason": "fixed", "dryRun": False, **body}, **(who or {}))
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


async def asked_for(world: Any) -> list[str]:
    return [each for row in await world.rows("dead_letter_requests") for each in row["deadLetterIds"]]


async def test_nothing_happens_unless_it_is_said_that_this_is_no_dry_run(world: Any, kit: Any) -> None:
    ids = await world.insert(*(kit.dead_letter(n) for n in range(3)))

    for chosen in ({"ids": ids}, {"filter": {"fingerprint": "aaaaaaaaaaaa"}}):
        for said in ({}, {"dryRun": True}):
            for action in ("redrive", "discard"):
                data = await redrive(world, action=action, **{"dryRun": True, **chosen, **said})
                assert data == {
                    "dryRun": True,
                    "matching": 3,
                    "matchingAtLeast": None,
                    "requested": 3,
                    "patients": 3,
                    "skipped": [],
                    "moreSkipped": 0,
                    "next": None,
                }
    answer = await world.post("/dead-letters/redrive", {"ids": ids, "reason": "unsaid"})
    assert answer.json()["data"]["dryRun"] is True

    assert await world.rows("dead_letter_requests") == []
    assert await world.rows("ops_audit") == []


@pytest.mark.parametrize("action", ["redrive", "discard"])
async def test_what_is_asked_for_goes_to_the_owners_of_the_partitions_and_into_the_audit(
    world: Any, kit: Any, action: str
) -> None:
    ids = await world.insert(*(kit.dead_letter(n) for n in range(5)))
    began = datetime.now(UTC) - timedelta(milliseconds=1)

    data = await redrive(world, action=action, ids=[*ids, ids[0]], who={"sub": "anna"})

    assert (data["requested"], data["patients"], data["skipped"], data["matching"]) == (5, 5, [], None)
    requests = {row["partition"]: row for row in await world.rows("dead_letter_requests")}
    assert {p: row["deadLetterIds"] for p, row in requests.items()} == {0: ids[0::2], 1: ids[1::2]}
    for row in requests.values():
        assert began < row.pop("requestedAt") < datetime.now(UTC)
        assert {name: row[name] for name in ("topic", "action", "by", "organizationId", "reason")} == {
            "topic": "events",
            "action": action,
            "by": "anna",
            "organizationId": "carebus",
            "reason": "fixed",
        }
        assert len(row["_id"]) == 36
    (audited,) = await world.rows("ops_audit")
    assert began < audited["at"] < datetime.now(UTC)
    assert audited["requestId"]
    assert {name: audited[name] for name in audited if name not in ("_id", "at", "requestId")} == {
        "actor": "anna",
        "actorOrganizationId": "carebus",
        "roles": ["operator"],
        "action": action,
        "target": ids,
        "filter": None,
        "reason": "fixed",
        "count": 5,
    }
    # Only the owner moves them.
    assert {row["status"] for row in await world.rows("dead_letters")} == {"open"}


async def test_a_second_click_asks_again_and_changes_nothing(world: Any, kit: Any) -> None:
    ids = await world.insert(kit.dead_letter())

    first, second = await redrive(world, ids=ids), await redrive(world, ids=ids)

    assert first == second
    assert await asked_for(world) == ids * 2
    assert (await world.data("/requests")) == {"requests": 2, "deadLetters": 2}


async def test_what_cannot_be_redriven_is_skipped_with_the_reason(world: Any, kit: Any) -> None:
    await world.insert(
        kit.dead_letter(0),
        kit.dead_letter(1, status="redriven"),
        kit.dead_letter(2, status="discarded"),
        kit.dead_letter(3, blocking=False, reason="conflict"),
        kit.dead_letter(4, redrives=3),
        kit.dead_letter(5, redrives=2),
        kit.dead_letter(6, organizationId="org-b"),
    )
    ids = [f"events-{n % 2}-{n}" for n in range(8)]
    who: dict[str, Any] = {"organization": "org-a"}

    data = await redrive(world, ids=ids, who=who)
    assert {each["id"]: each["why"] for each in data["skipped"]} == {
        "events-1-1": "not-open",
        "events-0-2": "not-open",
        "events-1-3": "not-redrivable",
        "events-0-4": "redrive-cap",
        "events-0-6": "not-found",
        "events-1-7": "not-found",
    }
    assert sorted(await asked_for(world)) == ["events-0-0", "events-1-5"]

    data = await redrive(world, action="discard", ids=ids, who=who)
    assert {each["id"] for each in data["skipped"]} == {"events-1-1", "events-0-2", "events-0-6", "events-1-7"}
    assert data["requested"] == 4


async def test_nothing_is_audited_where_nothing_is_asked_for(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter(status="discarded"))

    data = await redrive(world, ids=["events-0-0"])

    assert data["requested"] == 0
    assert await world.rows("ops_audit") == await world.rows("dead_letter_requests") == []


async def test_a_filter_takes_page_by_page_what_was_there_when_it_began(world: Any, kit: Any) -> None:
    ids = await world.insert(
        *(kit.dead_letter(n, createdAt=kit.noon + timedelta(seconds=n // 3)) for n in range(25)),
        kit.dead_letter(30, failure={"fingerprint": "bbbbbbbbbbbb"}),
        kit.dead_letter(31, blocking=False),
        kit.dead_letter(32, status="redriven"),
    )
    body: dict[str, Any] = {"filter": {"fingerprint": "aaaaaaaaaaaa"}, "limit": 10}

    first = await redrive(world, **body)
    # Failing again makes new ones of them, which this redrive must not meet.
    await world.insert(kit.dead_letter(90, createdAt=datetime.now(UTC) + timedelta(seconds=1)))
    second = await redrive(world, **body, cursor=first["next"])
    third = await redrive(world, **body, cursor=second["next"])

    assert [page["requested"] for page in (first, second, third)] == [10, 10, 5]
    assert third["next"] is None
    assert third["skipped"] == [{"id": "events-1-31", "why": "not-redrivable"}]
    assert sorted(await asked_for(world)) == sorted(ids[:25])
    filters = [row["filter"] for row in await world.rows("ops_audit")]
    assert [row["fingerprint"] for row in filters] == ["aaaaaaaaaaaa"] * 3
    assert len({row["until"] for row in filters}) == 1


async def test_a_dry_run_counts_what_a_redrive_could_take(world: Any, kit: Any) -> None:
    await world.insert(
        *(kit.dead_letter(n) for n in range(3)),
        kit.dead_letter(3, blocking=False),
        kit.dead_letter(4, redrives=3),
        kit.dead_letter(5, organizationId="org-b"),
    )
    body: dict[str, Any] = {"filter": {"type": "note"}, "dryRun": True, "limit": 2}
    who: dict[str, Any] = {"organization": "org-a"}

    assert (await redrive(world, **body, who=who))["matching"] == 3
    assert (await redrive(world, action="discard", **body, who=who))["matching"] == 5


@pytest.mark.parametrize(
    ("only", "found"),
    [
        ({"type": "lab-result"}, {1}),
        ({"organizationId": "org-b"}, {2}),
        ({"since": "2026-03-01T12:00:02Z"}, {2}),
        ({"until": "2026-03-01T12:00:01Z"}, {0}),
        ({"patient": "HASH"}, {0}),
    ],
)
async def test_a_filter_takes_what_it_names_and_nothing_else(
    world: Any, kit: Any, only: dict[str, str], found: set[int]
) -> None:
    await world.insert(
        kit.dead_letter(0), kit.dead_letter(1, type="lab-result"), kit.dead_letter(2, organizationId="org-b")
    )
    only = {name: patient_hash("org-a", "patient-0") if v == "HASH" else v for name, v in only.items()}

    await redrive(world, filter=only)

    assert {int(each.rpartition("-")[2]) for each in await asked_for(world)} == found


async def test_a_patient_id_is_neither_kept_nor_told(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter(patientId="p-canary"))
    only = {"patient": "p-canary", "organizationId": "org-a"}

    refused = await world.post("/dead-letters/redrive", {"filter": only, "reason": "x", "dryRun": False})
    assert refused.status_code == 403
    with capture_logs() as logs:
        await redrive(world, filter=only, who=PHI)

    assert "p-canary" not in refused.text + repr(logs)
    (audited,) = await world.rows("ops_audit")
    assert audited["filter"]["patient"] == patient_hash("org-a", "p-canary")
    assert "p-canary" not in repr(audited)


async def test_another_tenant_reaches_nothing_by_id_filter_or_cursor(world: Any, kit: Any) -> None:
    ids = await world.insert(*(kit.dead_letter(n) for n in range(4)))
    stranger: dict[str, Any] = {"organization": "org-b", "roles": ["operator-phi"]}

    for action in ("redrive", "discard"):
        assert (await redrive(world, action=action, ids=ids, who=stranger))["requested"] == 0
        assert (await redrive(world, action=action, filter={"type": "note"}, who=stranger))["requested"] == 0
        named = {"filter": {"organizationId": "org-a"}, "reason": "x", "dryRun": False}
        assert (await world.post(f"/dead-letters/{action}", named, **stranger)).status_code == 404
    assert (await world.post(REVEAL, {"reason": "x"}, **stranger)).status_code == 404
    value = msgspec.json.decode(kit.dead_letter()["value"])
    assert (await world.post(EDIT, {"reason": "x", "value": value}, **stranger)).status_code == 404
    assert await world.rows("dead_letter_requests") == await world.rows("ops_audit") == []

    body: dict[str, Any] = {"filter": {"type": "note"}, "limit": 1}
    following = (await redrive(world, **body, who={"organization": "org-a"}))["next"]
    again = {**body, "cursor": following, "reason": "x"}
    assert (await world.post("/dead-letters/redrive", again, **stranger)).status_code == 404
    assert (await world.post("/dead-letters/redrive", again)).status_code == 404
    assert (await world.post("/dead-letters/discard", again, organization="org-a")).status_code == 400
    other = {**again, "filter": {"type": "lab-result"}}
    assert (await world.post("/dead-letters/redrive", other, organization="org-a")).status_code == 400
    assert (await world.post("/dead-letters/redrive", again, organization="org-a")).status_code == 200

    listed = (await world.get("/dead-letters?limit=1", organization="org-a")).json()["page"]["next"]
    assert (await world.get(f"/dead-letters?limit=1&cursor={listed}", organization="org-b")).status_code == 404
    assert (await world.get(f"/dead-letters?status=all&cursor={listed}", organization="org-a")).status_code == 400


async def test_a_reveal_is_audited_before_the_payload_leaves(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter(edited=b'{"edited": 1}'))

    answer = await world.post(REVEAL, {"reason": "what is wrong with it"}, **PHI, sub="anna")

    data = answer.json()["data"]
    assert data["payload"]["data"]["name"] == "Jane Canary"
    assert (data["patientId"], data["key"], data["keyEncoding"]) == ("patient-0", "patient-0", "utf-8")
    assert data["edited"] == {"edited": 1}
    (audited,) = await world.rows("ops_audit")
    assert (audited["action"], audited["actor"], audited["target"]) == ("reveal", "anna", ["events-0-0"])
    assert audited["reason"] == "what is wrong with it"


async def test_nothing_is_revealed_or_asked_for_if_the_audit_cannot_be_written(world: Any, kit: Any) -> None:
    ids = await world.insert(kit.dead_letter())
    before = await world.rows("dead_letters")
    audit = world.database["ops_audit"]
    await audit.create_index("actor", unique=True)
    await audit.insert_one({"_id": "x", "actor": "tester"})
    value = {**msgspec.json.decode(before[0]["value"]), "data": {}}

    answers = [
        await world.post(REVEAL, {"reason": "x"}, **PHI),
        await world.post("/dead-letters/redrive", {"ids": ids, "reason": "x", "dryRun": False}),
        await world.post("/dead-letters/discard", {"ids": ids, "reason": "x", "dryRun": False}),
        await world.post(EDIT, {"reason": "x", "value": value}, **PHI),
        await world.post("/purges", {"reason": "x", "before": "2026-01-01T00:00:00Z"}),
    ]

    assert {answer.status_code for answer in answers} == {500}
    assert all("Canary" not in answer.text and "patient-0" not in answer.text for answer in answers)
    assert await world.rows("dead_letter_requests") == await world.rows("purges") == []
    assert await world.rows("dead_letters") == before


async def test_an_edit_is_kept_as_a_diff_without_values_and_redriven(world: Any, kit: Any) -> None:
    letter = kit.dead_letter(data={"weight": "61,5", "note": "Jane Canary", "list": [1, 2], "same": 1})
    await world.insert(letter)
    value = msgspec.json.decode(letter["value"])
    value["data"] = {"weight": 61.5, "list": [1, 3], "a/b": "Canary", "same": 1}

    answer = await world.post(EDIT, {"reason": "comma", "value": value}, **PHI, sub="anna")

    assert answer.status_code == 200, answer.text
    (row,) = await world.rows("dead_letters")
    assert msgspec.json.decode(row["edited"]) == value
    assert (row["value"], row["status"]) == (letter["value"], "open")
    assert sorted((each["path"], each["op"]) for each in row["edits"][0]["diff"]) == [
        ("/data/a~1b", "add"),
        ("/data/list/1", "replace"),
        ("/data/note", "remove"),
        ("/data/weight", "replace"),
    ]
    assert (row["edits"][0]["by"], row["edits"][0]["reason"]) == ("anna", "comma")
    (request,) = await world.rows("dead_letter_requests")
    assert (request["action"], request["deadLetterIds"]) == ("redrive", ["events-0-0"])
    (audited,) = await world.rows("ops_audit")
    assert (audited["action"], audited["target"]) == ("edit", ["events-0-0"])
    assert "Canary" not in repr(audited) + repr(row["edits"]) + answer.text
    # A second edit is compared with the first one.
    value["data"]["weight"] = 62.5
    await world.post(EDIT, {"reason": "again", "value": value}, **PHI)
    (row,) = await world.rows("dead_letters")
    assert [each["path"] for each in row["edits"][1]["diff"]] == ["/data/weight"]


async def test_an_edit_of_what_somebody_else_has_edited_meanwhile_is_refused(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter())
    (stale,) = await world.rows("dead_letters")
    entry = {"by": "anna", "at": kit.noon, "reason": "x", "diff": []}
    scope = Scope("bert", "org-a", ("operator-phi",), "org-a", reveals=True)
    audit = Audit(world.database)
    letters = DeadLetters(world.database, audit)

    await letters.edit(scope, stale, b"1", entry, audit_row(scope, "edit", reason="x", request_id="r"))
    with pytest.raises(Conflict):
        await letters.edit(scope, stale, b"2", entry, audit_row(scope, "edit", reason="x", request_id="r"))

    (row,) = await world.rows("dead_letters")
    assert (row["edited"], len(row["edits"])) == (b"1", 1)
    assert len(await world.rows("dead_letter_requests")) == len(await world.rows("ops_audit")) == 1


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"patientId": "somebody-else"}, "$.value.patientId"),
        ({"organizationId": "org-b"}, "$.value.organizationId"),
        ({"eventId": "00000000-0000-7000-8000-000000000000"}, "$.value.eventId"),
        ({"eventId": "Canary"}, "$.value.eventId"),
        ({"ts": "Canary"}, "$.value.ts"),
        ({"data": "Canary"}, "$.value.data"),
        ({"Canary name": 1}, "$.value.?"),
        ({"data": {"x": "y" * 600_000}}, "$.value"),
    ],
)
async def test_an_edit_must_stay_the_records_event(world: Any, kit: Any, change: dict[str, Any], path: str) -> None:
    letter = kit.dead_letter()
    await world.insert(letter)

    answer = await world.post(EDIT, {"reason": "x", "value": {**msgspec.json.decode(letter["value"]), **change}}, **PHI)

    assert answer.status_code == 422, answer.text
    assert [detail["path"] for detail in answer.json()["error"]["details"]] == [path]
    assert "Canary" not in answer.text
    assert await world.rows("dead_letters") == [letter]
    assert await world.rows("dead_letter_requests") == await world.rows("ops_audit") == []


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"status": "redriven"}, "not-open"),
        ({"status": "discarded"}, "not-open"),
        ({"blocking": False}, "not-redrivable"),
        ({"redrives": 3}, "redrive-cap"),
        # Whose patient waits is not known, so nobody may say whose it shall be.
        ({"organizationId": None}, "the same as the record's"),
        ({"key": b"another"}, "the same as the record's"),
    ],
)
async def test_only_what_blocks_and_may_be_redriven_is_edited(
    world: Any, kit: Any, fields: dict[str, Any], why: str
) -> None:
    value = msgspec.json.decode(kit.dead_letter(eventId="0198c0de-0000-7000-8000-000000000001")["value"])
    await world.insert(kit.dead_letter(**{"eventId": value["eventId"], **fields}))

    answer = await world.post(EDIT, {"reason": "x", "value": value}, **PHI)

    assert answer.status_code == 422
    assert [detail["rule"] for detail in answer.json()["error"]["details"]] == [why]
    assert await world.rows("dead_letter_requests") == []


async def test_a_record_that_could_not_be_read_is_edited_into_an_event_of_its_patient(world: Any, kit: Any) -> None:
    value = msgspec.json.decode(kit.dead_letter(eventId="0198c0de-0000-7000-8000-000000000001")["value"])
    await world.insert(kit.dead_letter(value=b"Jane Canary", eventId=None, type=None, reason="undecodable"))

    wrong = await world.post(EDIT, {"reason": "x", "value": {**value, "patientId": "patient-1"}}, **PHI)
    right = await world.post(EDIT, {"reason": "x", "value": value}, **PHI)

    assert (wrong.status_code, right.status_code) == (422, 200)
    (row,) = await world.rows("dead_letters")
    assert row["edits"][0]["diff"] == [{"path": "", "op": "replace"}]
