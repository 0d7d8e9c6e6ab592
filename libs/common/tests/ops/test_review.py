"""Purges by two people, and the audit."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from carebus_common.ops import purges

BEFORE = "2026-03-01T12:00:05Z"


async def ask(world: Any, **who: Any) -> str:
    answer = await world.post("/purges", {"reason": "old", "before": BEFORE}, **{"sub": "anna", **who})
    assert answer.status_code == 200, answer.text
    purge_id: str = answer.json()["data"]["id"]
    return purge_id


async def approve(world: Any, purge_id: str, **who: Any) -> Any:
    return await world.post(f"/purges/{purge_id}/approve", **{"sub": "bert", **who})


async def test_a_purge_deletes_what_is_settled_and_old_once_another_person_approves(world: Any, kit: Any) -> None:
    def outcome(status: str) -> dict[str, Any]:
        return {"status": "redriven", "outcome": {"status": status, "at": kit.noon, "deadLetter": None}}

    kept = await world.insert(
        kit.dead_letter(0),
        kit.dead_letter(1, status="redriven"),
        kit.dead_letter(2, **outcome("retrying")),
        kit.dead_letter(10, status="discarded", createdAt=kit.noon + timedelta(seconds=5)),
        kit.dead_letter(11, **outcome("processed"), createdAt=kit.noon + timedelta(days=1)),
    )
    await world.insert(
        kit.dead_letter(3, status="discarded"),
        kit.dead_letter(4, **outcome("processed")),
        kit.dead_letter(20, **outcome("dead-lettered"), createdAt=kit.noon - timedelta(days=900)),
    )

    purge_id = await ask(world)
    assert len(await world.rows("dead_letters")) == 8
    answer = await approve(world, purge_id, roles=["operator-phi"])

    data = answer.json()["data"]
    assert (data["status"], data["deleted"]) == ("done", 3)
    assert (data["requestedBy"], data["approvedBy"], data["reason"]) == ("anna", "bert", "old")
    assert sorted(row["_id"] for row in await world.rows("dead_letters")) == sorted(kept)
    assert await world.data("/purges") == [data]
    assert [row["action"] for row in await world.rows("ops_audit")] == ["purge-request", "purge-approve"]


async def test_nobody_approves_a_purge_of_their_own(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter(status="discarded"))
    purge_id = await ask(world)

    answer = await approve(world, purge_id, sub="anna", roles=["operator-phi"])

    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not-allowed")
    assert len(await world.rows("dead_letters")) == 1
    assert (await world.data("/purges"))[0]["status"] == "requested"
    assert len(await world.rows("ops_audit")) == 1


async def test_an_approval_that_is_repeated_deletes_nothing_more(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter(0, status="discarded"))
    purge_id = await ask(world)
    first = await approve(world, purge_id)
    await world.insert(kit.dead_letter(1, status="discarded"))

    second = await approve(world, purge_id, sub="carl")

    assert second.json() == first.json()
    assert len(await world.rows("dead_letters")) == 1
    assert len(await world.rows("ops_audit")) == 2


async def test_a_purge_that_takes_long_goes_on_where_it_ended(
    world: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purges, "_PAGE", 3)
    await world.insert(*(kit.dead_letter(n, status="discarded", createdAt=kit.noon) for n in range(8)))
    purge_id = await ask(world)
    with monkeypatch.context() as hurried:
        hurried.setattr(purges, "_SECONDS", 0)
        begun = (await approve(world, purge_id)).json()["data"]
    assert (begun["status"], begun["deleted"]) == ("approved", 0)
    assert (await approve(world, purge_id, sub="anna")).status_code == 422

    done = (await approve(world, purge_id)).json()["data"]

    assert (done["status"], done["deleted"]) == ("done", 8)
    assert await world.rows("dead_letters") == []


async def test_a_purge_that_is_not_there_is_not_found(world: Any) -> None:
    assert (await approve(world, "0198c0de-0000-7000-8000-000000000001")).status_code == 404


async def test_the_audit_is_read_newest_first_page_by_page(world: Any, kit: Any) -> None:
    for n in range(5):
        await world.post("/consumer/resume", {"reason": f"{n}"}, sub=f"s{n}")
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await world.get(f"/audit?limit=2{cursor}")).json()
        seen += [row["reason"] for row in page["data"]]
        if page["page"]["next"] is None:
            break
        cursor = f"&cursor={page['page']['next']}"

    assert seen == ["4", "3", "2", "1", "0"]
    assert page["data"][-1]["action"] == "resume"
    assert (page["data"][-1]["actor"], page["data"][-1]["actorOrganizationId"]) == ("s0", "carebus")


async def test_nobody_rewrites_the_audit(world: Any) -> None:
    await world.post("/consumer/resume", {"reason": "x"})
    before = await world.rows("ops_audit")

    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/audit", f"/audit/{before[0]['_id']}"):
            assert (await world.call(method, path, {}, roles=["operator-phi"])).status_code in (404, 405)
    assert await world.rows("ops_audit") == before
