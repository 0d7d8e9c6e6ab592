"""What parking costs while nothing is parked: `python bench/parking/run.py REVISION [EVENTS [RUNS]]`.

Runs the processor's runtime and that of another revision of this repository (the one before parking, say) in turn over
the same topic on the same parts, and prints events/s and CPU an event of each, with the ratio run by run.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from carebus_common.contracts.event import MedicalEvent, encode
from carebus_common.kafka import Publisher
from carebus_common.messages import Message
from carebus_local import topics
from carebus_local.parts import StackUrls
from carebus_local.testing import create_topic, random_name, stack_for_tests

ROOT = Path(__file__).parents[2]
PATIENTS = 1000


async def main(revision: str, events: int, runs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="carebus-bench-") as scratch:
        other = Path(scratch) / "other"
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--detach", other, revision], check=True, capture_output=True
        )
        try:
            async with stack_for_tests() as stack:
                await topics.apply(stack.kafka_bootstrap)
                topic = random_name("bench")
                await create_topic(stack.kafka_bootstrap, topic, 12)
                await fill(stack, topic, events)
                await compare(stack, topic, events, runs, {revision: other, "this checkout": ROOT})
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", other], check=False)


async def fill(stack: StackUrls, topic: str, events: int) -> None:
    publisher = Publisher(stack.kafka_bootstrap, client_id="bench", deadline=timedelta(seconds=30), topics=[topic])
    await publisher.start()
    now = datetime.now(UTC)
    for first in range(0, events, 5000):
        chunk = [
            MedicalEvent(
                event_id=uuid4(),
                organization_id="bench",
                patient_id=f"p{n % PATIENTS}",
                type="vital-signs",
                ts=now,
                received_at=now,
                data={"heartRate": 60 + n % 60, "note": "x" * 200},
            )
            for n in range(first, min(events, first + 5000))
        ]
        await publisher.publish_each([Message(topic, e.patient_id.encode(), encode(e)) for e in chunk])
    await publisher.stop()


async def compare(stack: StackUrls, topic: str, events: int, runs: int, checkouts: dict[str, Path]) -> None:
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for number in range(runs + 1):
        for name, checkout in checkouts.items():
            found = await measure(stack, topic, events, checkout)
            if found["inbox"] != events:
                raise SystemExit(f"{name}: {found['inbox']} of {events} events have an inbox row")
            if number:  # the first pair warms the parts up
                figures[name].append(found)
                print(
                    f"{name:<20} {found['perSecond']:>8.0f}/s {found['cpuMicros']:>6.0f} µs",
                    file=sys.stderr,
                    flush=True,
                )
    before, after = figures.values()
    print("| | events/s, median | CPU µs an event, median |")
    print("|---|---|---|")
    for name, found in figures.items():
        print(f"| {name} | {median(found, 'perSecond'):.0f} | {median(found, 'cpuMicros'):.1f} |")
    for figure in ("perSecond", "cpuMicros"):
        ratios = [new[figure] / old[figure] for old, new in zip(before, after, strict=True)]
        print(f"\nratio of {figure}: median {statistics.median(ratios):.3f}, of {min(ratios):.3f} to {max(ratios):.3f}")


def median(found: list[dict[str, Any]], figure: str) -> float:
    return statistics.median(one[figure] for one in found)


async def measure(stack: StackUrls, topic: str, events: int, checkout: Path) -> dict[str, Any]:
    sources = [str(path) for folder in ("libs", "services") for path in sorted((checkout / folder).glob("*/src"))]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("measure.py")),
        *(stack.kafka_bootstrap, stack.mongo_url, topic, random_name("bench"), str(events)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sources)},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{checkout} failed")
    found: dict[str, Any] = json.loads(printed)
    return found


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    asyncio.run(
        main(
            sys.argv[1],
            int(sys.argv[2]) if len(sys.argv) > 2 else 40_000,
            int(sys.argv[3]) if len(sys.argv) > 3 else 5,
        )
    )
