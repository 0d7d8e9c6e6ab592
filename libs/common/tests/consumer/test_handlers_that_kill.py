"""An event that takes its process down, or never lets go of it, is found and set aside after so many restarts."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from .conftest import World, event, eventually


@asynccontextmanager
async def restarted(world: World, notes: Path, *, seconds: float = 0.0) -> AsyncIterator[list[int]]:
    """A replica that is started again whenever it dies; gives the list of its exit codes."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("replica.py")),
        world.stack.kafka_bootstrap,
        world.stack.mongo_url,
        world.topic,
        world.out,
        world.group,
        str(seconds),
    ]
    environment = {**os.environ, "REPLICA_NOTES": str(notes), "REPLICA_DEADLINE": "1"}
    deaths: list[int] = []

    async def keep() -> None:
        while True:
            process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.DEVNULL)
            try:
                deaths.append(await process.wait())
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    keeper = asyncio.create_task(keep())
    try:
        yield deaths
    finally:
        keeper.cancel()
        await asyncio.wait([keeper])


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("patient", "what"), [("bad", "exit"), ("bad", "hang"), ("slow-bad", "exit later")])
async def test_an_event_that_ends_its_process_becomes_a_dead_letter(
    world: World, tmp_path: Path, patient: str, what: str
) -> None:
    await world.send(event(patient, n=0), event(patient, n=1, do=what), event(patient, n=2))
    others = [f"p{n}" for n in range(5)] + ["slow-good"]
    await world.send(*(event(other, n=n) for n in range(4) for other in others))
    async with restarted(world, tmp_path, seconds=0.05) as deaths:
        (letter,) = await world.letters(within=120)
        await world.wait_for_inbox(1 + 4 * len(others), within=60)
        assert len(deaths) == 3

        async def forgotten() -> bool:
            return not await world.rows("interrupted_events")

        await eventually(forgotten, what="the suspects are forgotten")
    assert letter["reason"] == "crashed"
    assert await world.seen(patient) == [0]
    for other in others:
        assert await world.seen(other) == [0, 1, 2, 3]
