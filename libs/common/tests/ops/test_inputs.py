"""Input that breaks a rule is refused with the field named, and is never a 500."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

IDS = ["events-0-0"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/dead-letters?status=any", "status"),
        ("/dead-letters?status[$ne]=open", "status[$ne]"),
        ("/dead-letters?fingerprint=$where", "fingerprint"),
        ("/dead-letters?type=$where", "type"),
        ("/dead-letters?organizationId=a%0d%0ab", "organizationId"),
        ("/dead-letters?organizationId=a&organizationId=b", "organizationId"),
        ("/dead-letters?patient=", "patient"),
        ("/dead-letters?patient=" + "x" * 129, "patient"),
        ("/dead-letters?since=yesterday", "since"),
        ("/dead-letters?since=2026-03-01", "since"),
        ("/dead-letters?until=9999-12-31T23:59:59-12:00", "until"),
        ("/dead-letters?since=2026-03-02T00:00:00Z&until=2026-03-01T00:00:00Z", "until"),
        ("/dead-letters?limit=0", "limit"),
        ("/dead-letters?limit=201", "limit"),
        ("/dead-letters?limit=%2B5", "limit"),
        ("/dead-letters?limit=1e9", "limit"),
        ("/dead-letters?cursor=nonsense", "cursor"),
        ("/dead-letters?cursor=" + "A" * 2000, "cursor"),
        ("/dead-letters?sort=$where", "sort"),
        ("/dead-letters/summary?status=open", "status"),
        ("/dead-letters/summary?since=2026-03-02T00:00:00Z&until=2026-03-01T00:00:00Z", "until"),
        ("/dead-letters/x", "dead_letter_id"),
        ("/dead-letters/events-0-0%0d%0aX", "dead_letter_id"),
        ("/dead-letters/events-0-0%0a", "dead_letter_id"),
        ("/dead-letters/events-0-%D9%A1", "dead_letter_id"),
        ("/dead-letters/%7B%22$ne%22:1%7D", "dead_letter_id"),
        ("/dead-letters/%00", "dead_letter_id"),
        ("/dead-letters/%ff", "path"),
        ("/audit?limit=0", "limit"),
        ("/audit?cursor=x", "cursor"),
        ("/topics/not-there/tail?limit=x", "limit"),
        ("/topics/not-there/tail?cursor=x", "cursor"),
        ("/topics/" + "x" * 250 + "/tail", "topic"),
    ],
)
async def test_a_query_or_path_that_breaks_a_rule_is_refused(world: Any, path: str, field: str) -> None:
    answer = await world.get(path)

    assert answer.status_code == 400, answer.text
    assert field in [detail["path"] for detail in answer.json()["error"]["details"]]


@pytest.mark.parametrize(
    "body",
    [
        {"ids": IDS},
        {"reason": "x"},
        {"reason": "x", "ids": []},
        {"reason": "x", "ids": None},
        {"reason": "x", "ids": "events-0-0"},
        {"reason": "x", "ids": ["x"]},
        {"reason": "x", "ids": [{"$ne": None}]},
        {"reason": "x", "ids": [f"events-0-{n}" for n in range(1001)]},
        {"reason": "x", "ids": IDS, "filter": {"type": "note"}},
        {"reason": "x", "ids": IDS, "cursor": "x"},
        {"reason": "x", "filter": {}},
        {"reason": "x", "filter": {"status": "open"}},
        {"reason": "x", "filter": {"fingerprint": {"$ne": None}}},
        {"reason": "x", "filter": {"since": 5}},
        {"reason": "x", "filter": {"since": "2026-03-02T00:00:00Z", "until": "2026-03-01T00:00:00Z"}},
        {"reason": "x", "filter": {"type": "note"}, "limit": 0},
        {"reason": "x", "filter": {"type": "note"}, "limit": 20_001},
        {"reason": "x", "ids": IDS, "run": "the-last-one"},
        {"reason": "x", "filter": {"type": "note"}, "limit": "5"},
        {"reason": "x", "filter": {"type": "note"}, "cursor": "x"},
        {"reason": "x", "ids": IDS, "dryRun": "false"},
        {"reason": "x", "ids": IDS, "dryRun": 0},
        {"reason": "x", "ids": IDS, "dry_run": False},
        {"reason": "x", "ids": IDS, "by": "somebody"},
        {"reason": "", "ids": IDS},
        {"reason": " \n", "ids": IDS},
        {"reason": "x" * 501, "ids": IDS},
        {"reason": {"$gt": ""}, "ids": IDS},
        [],
        "x",
        5,
    ],
)
async def test_a_body_that_breaks_a_rule_is_refused_and_nothing_is_asked_for(world: Any, kit: Any, body: Any) -> None:
    await world.insert(kit.dead_letter())

    for action in ("redrive", "discard"):
        sent = {"dryRun": False, **body} if isinstance(body, dict) and "dry_run" not in body else body
        answer = await world.post(f"/dead-letters/{action}", sent)
        assert answer.status_code == 400, answer.text
    assert await world.rows("dead_letter_requests") == await world.rows("ops_audit") == []


async def test_a_filter_of_nulls_is_no_filter(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter())

    answer = await world.post("/dead-letters/discard", {"reason": "x", "filter": {"type": None}, "dryRun": False})

    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/consumer/resume", {}),
        ("/consumer/resume", {"reason": "x", "version": 1}),
        ("/dead-letters/events-0-0/reveal", {}),
        ("/dead-letters/events-0-0/reveal", {"reason": "x", "more": 1}),
        ("/dead-letters/events-0-0/edit", {"reason": "x"}),
        ("/dead-letters/events-0-0/edit", {"reason": "x", "value": []}),
        ("/dead-letters/events-0-0/edit", {"reason": "x", "value": {"$set": 1}}),
        ("/purges", {"reason": "x"}),
        ("/purges", {"reason": "x", "before": "2999-01-01T00:00:00Z"}),
        ("/purges", {"reason": "x", "before": 5}),
        ("/purges/x/approve", {}),
        ("/purges/0198c0de-0000-7000-8000-000000000001/approve", {"by": "me"}),
    ],
)
async def test_the_other_bodies_are_as_strict(world: Any, kit: Any, path: str, body: Any) -> None:
    await world.insert(kit.dead_letter())

    answer = await world.post(path, body, roles=["operator-phi"])

    assert answer.status_code == 400, answer.text
    assert await world.rows("ops_audit") == []


@pytest.mark.parametrize(
    "content", [b'{"reason": "x", "reason": "y"}', b'{"reason": "\\ud800"}', b"\xff", b'{"reason": NaN}', b""]
)
async def test_json_that_has_two_readings_is_refused(world: Any, content: bytes) -> None:
    headers = {"Authorization": world.issuer.bearer("carebus", ["operator"]), "Content-Type": "application/json"}

    answer = await world.http.post("/ops/example/consumer/resume", content=content, headers=headers)

    assert answer.status_code == 400


async def test_a_line_break_in_a_reason_or_a_subject_forges_no_log_line(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter())

    with capture_logs() as logs:
        answer = await world.post(
            "/dead-letters/redrive", {"reason": "a\r\nb", "ids": IDS, "dryRun": False}, sub="x\r\ny"
        )

    assert answer.status_code == 200
    assert "a\\r\\nb" not in repr(logs)
    (audited,) = await world.rows("ops_audit")
    assert (audited["reason"], audited["actor"]) == ("a\r\nb", "x\r\ny")


@pytest.mark.parametrize("path", ["", "/", "/dead-letters/", "/dead-letters/a/b/c", "/topics//tail", "/nothing"])
async def test_what_is_not_served_is_not_found(world: Any, path: str) -> None:
    assert (await world.get(path)).status_code == 404


async def test_nothing_is_changed_by_get_and_nothing_is_deleted_by_delete(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter())

    for path in ("/dead-letters/events-0-0/reveal", "/consumer/resume"):
        assert (await world.get(path)).status_code == 405
    for path in ("/dead-letters", "/dead-letters/events-0-0", "/audit", "/purges"):
        for method in ("PUT", "PATCH", "DELETE"):
            assert (await world.call(method, path, {})).status_code == 405
