"""Runs: whoever asked for much at once learns what became of it, and of nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

RUN = "0198c0de-0000-4000-8000-000000000001"
ANOTHER = "0198c0de-0000-4000-8000-000000000002"
NOTHING = {"pending": {"requests": 0, "deadLetters": 0}, "outcomes": {}, "again": []}


async def ask(world: Any, run: str | None = RUN, action: str = "redrive", **chosen: Any) -> Any:
    answer = await world.post(f"/dead-letters/{action}", {"reason": "fixed", "dryRun": False, "run": run, **chosen})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def settled(kit: Any, n: int, status: str, *, run: str = RUN, action: str = "redrive", **more: Any) -> dict[str, Any]:
    """As the owner leaves one."""
    outcome = {"status": status, "at": datetime.now(UTC), "deadLetter": f"events-0-{n}~1"}
    outcome["deadLetter"] = outcome["deadLetter"] if status == "dead-lettered" else None
    asked = {"by": "anna", "reason": "fixed", "at": datetime.now(UTC), "run": run}
    now = {"redrive": "redriven", "discard": "discarded"}[action]
    letter: dict[str, Any] = {**kit.dead_letter(n), "status": now, action: asked, "outcome": outcome, **more}
    return letter


async def test_a_run_tells_how_many_are_left_until_the_owners_are_done(world: Any, kit: Any) -> None:
    ids = await world.insert(*(kit.dead_letter(n) for n in range(5)))
    assert await world.data(f"/runs/{RUN}") == NOTHING

    await ask(world, ids=ids[:3])
    await ask(world, ids=ids[3:])
    await ask(world, ANOTHER, ids=ids)
    await ask(world, None, ids=ids)

    assert {row["run"] for row in await world.rows("dead_letter_requests")} == {RUN, ANOTHER, None}
    assert await world.data(f"/runs/{RUN}") == {**NOTHING, "pending": {"requests": 4, "deadLetters": 5}}


async def test_a_run_counts_its_outcomes_and_names_what_failed_again(world: Any, kit: Any) -> None:
    await world.insert(
        *(settled(kit, n, "processed") for n in range(4)),
        settled(kit, 4, "dead-lettered"),
        settled(kit, 5, "discarded", action="discard"),
        settled(kit, 6, "processed", run=ANOTHER),
        kit.dead_letter(7),
    )
    assert await world.data(f"/runs/{RUN}") == {
        **NOTHING,
        "outcomes": {"processed": 4, "dead-lettered": 1, "discarded": 1},
        "again": [{"id": "events-0-4", "deadLetter": "events-0-4~1"}],
    }


async def test_outcomes_are_not_counted_for_whoever_only_asks_what_is_left(world: Any, kit: Any) -> None:
    await world.insert(settled(kit, 0, "dead-lettered"))
    assert await world.data(f"/runs/{RUN}?outcomes=false") == NOTHING
    assert (await world.get(f"/runs/{RUN}?outcomes=no")).status_code == 400


async def test_of_many_that_failed_again_a_hundred_are_named(world: Any, kit: Any) -> None:
    await world.insert(*(settled(kit, n, "dead-lettered") for n in range(120)))
    data = await world.data(f"/runs/{RUN}")
    assert (data["outcomes"], len(data["again"])) == ({"dead-lettered": 120}, 100)


async def test_an_organization_sees_what_became_of_its_own(world: Any, kit: Any) -> None:
    await world.insert(
        settled(kit, 0, "processed", organizationId="org-a"), settled(kit, 1, "dead-lettered", organizationId="org-b")
    )
    await ask(world, filter={"type": "note"})
    data = (await world.get(f"/runs/{RUN}", organization="org-a")).json()["data"]
    assert data == {**NOTHING, "outcomes": {"processed": 1}}


async def test_many_are_asked_for_at_once_and_those_left_out_are_counted(world: Any, kit: Any) -> None:
    await world.insert(*(kit.dead_letter(n, redrives=5) for n in range(1100)))
    await world.insert(*(kit.dead_letter(n) for n in range(1100, 2300)))
    data = await ask(world, filter={"type": "note"}, limit=20_000)
    assert (data["requested"], len(data["skipped"]), data["moreSkipped"], data["next"]) == (1200, 1000, 100, None)
    rows = await world.rows("dead_letter_requests")
    assert sum(len(row["deadLetterIds"]) for row in rows) == 1200
    assert max(len(row["deadLetterIds"]) for row in rows) <= 500
    assert len((await world.rows("ops_audit"))[0]["target"]) == 1000
