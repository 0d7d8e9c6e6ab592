from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from carebus_claims.repository import HISTORIES, HistoryFilter, HistoryRepository, Place
from carebus_common.errors import Unavailable

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def stages(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """A plan's stages from the outermost to the innermost."""
    found = [plan]
    while "inputStage" in found[-1]:
        found.append(found[-1]["inputStage"])
    return found


@pytest.mark.parametrize(
    ("only", "index"),
    [
        (HistoryFilter(), "history"),
        (HistoryFilter(newest_first=False), "history"),
        (HistoryFilter(since=NOON, until=NOON + timedelta(days=1)), "history"),
        (HistoryFilter(type="lab-result"), "history_by_type"),
        (HistoryFilter(type="lab-result", since=NOON), "history_by_type"),
    ],
)
@pytest.mark.parametrize("after", [None, Place(NOON + timedelta(minutes=2), "org-a/x")])
async def test_every_history_query_is_served_by_a_tenant_first_index(
    world: Any, events: Any, only: HistoryFilter, index: str, after: Place | None
) -> None:
    await world.apply(events(type=t, ts=NOON + timedelta(minutes=n)) for n in range(5) for t in ("note", "lab-result"))
    tenant = world.repository.for_tenant("org-a")
    summary = await tenant.summary("patient-1")
    direction = -1 if only.newest_first else 1

    for query in tenant.history_queries("patient-1", only, summary, after):
        cursor = world.database[HISTORIES].find(query).sort([("ts", direction), ("_id", direction)]).limit(51)
        plan = (await cursor.explain())["queryPlanner"]["winningPlan"]

        used = stages(plan)
        scans = [stage for stage in used if stage["stage"] in ("IXSCAN", "COLLSCAN")]
        assert [(stage["stage"], stage.get("indexName")) for stage in scans] == [("IXSCAN", index)]
        assert next(iter(scans[0]["keyPattern"])) == "organizationId"
        # The embedded store sorts what the bounds admit; narrow bounds are what keeps that quick.
        assert "SORT" not in [stage["stage"] for stage in used] or await embedded(world)


async def embedded(world: Any) -> bool:
    """Whether the store is the embedded one, whose sorts never use an index."""
    hello = await world.database.client.admin.command("hello")
    return bool(hello.get("setName") == "secantus")


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("kind", [None, "rare"])
async def test_a_page_of_a_long_history_looks_at_little_of_it(
    world: Any, events: Any, newest_first: bool, kind: str | None
) -> None:
    """5,000 events over the years, most of them in one week."""
    await world.apply(
        events(
            type="rare" if n % 10 == 0 else "note",
            ts=NOON + (timedelta(minutes=2 * n) if n % 5 else timedelta(days=n)),
        )
        for n in range(5000)
    )
    tenant = world.repository.for_tenant("org-a")
    only = HistoryFilter(type=kind, newest_first=newest_first)
    summary = await tenant.summary("patient-1")
    seen: list[dict[str, Any]] = []
    after = None
    for _ in range(3):
        examined = found = 0
        for query in tenant.history_queries("patient-1", only, summary, after):
            answer = await world.database[HISTORIES].find(query).explain()
            examined += answer["executionStats"]["totalDocsExamined"]
            found += answer["executionStats"]["nReturned"]
            if found >= 51:
                break
        assert examined < 1500
        rows, after = await tenant.history("patient-1", only, limit=50, after=after)
        seen += rows

    expected = await world.database[HISTORIES].find({"canonicalType": kind} if kind else {}).to_list()
    expected.sort(key=lambda row: (row["ts"], row["_id"]), reverse=newest_first)
    assert [row["_id"] for row in seen] == [row["_id"] for row in expected[:150]]


async def test_creating_the_indexes_again_changes_nothing(world: Any) -> None:
    before = await world.database[HISTORIES].index_information()
    await world.repository.create_indexes()

    assert await world.database[HISTORIES].index_information() == before
    assert set(before) == {"_id_", "history", "history_by_type"}


@pytest_asyncio.fixture
async def silent() -> AsyncIterator[int]:
    """The port of a server that takes connections and never says a word."""

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


# The driver leaves the socket of a connection that it gave up on to the garbage collector, whose warning must not
# hit another test.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["refuses", "says nothing"])
async def test_a_store_that_is_away_is_said_to_be_within_the_time_limit(how: str, silent: int) -> None:
    port = silent if how == "says nothing" else 1
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(f"mongodb://127.0.0.1:{port}/?directConnection=true")
    repository = HistoryRepository(client["db"], timeout=timedelta(seconds=0.5))
    tenant = repository.for_tenant("org-a")

    for read in (
        lambda: tenant.summary("p"),
        lambda: tenant.history("p", HistoryFilter(), limit=5),
        repository.ping,
    ):
        began = time.monotonic()
        with pytest.raises(Unavailable) as refused:
            await read()
        assert time.monotonic() - began < 1.5
        assert int(refused.value.headers["Retry-After"]) >= 1
    await client.close()
    gc.collect()
