"""Three replicas, slow patients, duplicates, kill -9: nothing lost, nothing twice, nothing out of order."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from carebus_common.contracts.event import MedicalEvent

from .conftest import World, event, eventually, of_patient

PATIENTS = 1000
SLOW = 20
SECONDS = 5.0


class Replicas:
    """Processes that are started again when they are killed."""

    def __init__(self, world: World) -> None:
        self._arguments = [
            str(Path(__file__).with_name("replica.py")),
            world.stack.kafka_bootstrap,
            world.stack.mongo_url,
            world.topic,
            world.out,
            world.group,
            str(SECONDS),
        ]
        self._running: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        self._running.append(
            await asyncio.create_subprocess_exec(sys.executable, *self._arguments, stderr=asyncio.subprocess.DEVNULL)
        )

    async def kill(self, index: int) -> None:
        process = self._running.pop(index)
        process.send_signal(signal.SIGKILL)
        await process.wait()

    async def stop(self) -> None:
        while self._running:
            await self.kill(0)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kills", [0, 6], ids=["undisturbed", "killed six times"])
async def test_order_and_one_effect_hold_over_three_replicas(world: World, kills: int) -> None:
    seed = int(os.environ.get("CAREBUS_TEST_SEED", "20261123"))
    print(f"seed {seed}")
    rng = random.Random(seed)
    patients = [f"slow{n}" for n in range(SLOW)] + [f"p{n}" for n in range(PATIENTS - SLOW)]
    sent: dict[str, list[int]] = {patient: [] for patient in patients}
    history: list[MedicalEvent] = []
    total = 0

    def next_event() -> MedicalEvent:
        if history and rng.random() < 0.1:
            return rng.choice(history)
        patient = rng.choice(patients)
        if patient.startswith("slow") and len(sent[patient]) >= 3:
            patient = f"p{rng.randrange(PATIENTS - SLOW)}"
        sent[patient].append(len(sent[patient]))
        history.append(event(patient, n=sent[patient][-1]))
        return history[-1]

    replicas = Replicas(world)
    for _ in range(3):
        await replicas.start()
    try:
        for _ in range(max(kills, 4)):
            for _ in range(5):
                chunk = [next_event() for _ in range(250)]
                total += len(chunk)
                await world.send(*chunk)
            if kills:
                await asyncio.sleep(rng.uniform(0.5, 2))
                await replicas.kill(rng.randrange(3))
                await replicas.start()
        fast = sum(len(numbers) for patient, numbers in sent.items() if not patient.startswith("slow"))
        await eventually(lambda: _inbox_reaches(world, fast), within=90, what="the fast patients' events")
        await eventually(lambda: _inbox_reaches(world, len(history)), within=120, what="all events")
        await eventually(lambda: _committed_reaches(world, total), within=60, what="the committed offsets")
    finally:
        await replicas.stop()

    out = await world.emitted(len(history))
    rows = {row["_id"]: row async for row in world.database["patients"].find({})}
    for patient in patients:
        if sent[patient]:
            assert rows[f"org/{patient}"]["state"]["seen"] == sent[patient]
            # A message goes out again when its record is redelivered; the first time it does, it is in its place.
            assert list(dict.fromkeys(of_patient(out, patient))) == sent[patient]
    assert await world.inbox_count() == len(history)


async def _inbox_reaches(world: World, count: int) -> bool:
    return await world.inbox_count() >= count


async def _committed_reaches(world: World, count: int) -> bool:
    return await world.committed() >= count
