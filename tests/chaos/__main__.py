"""`python -m tests.chaos [--scale 0.1] [--only 1,6] [--seed N] [--json FILE] [--planted]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic, strftime
from typing import Any

from .experiments.table import EXPERIMENTS
from .harness import Chaos, Experiment, Setup, started


@dataclass
class Result:
    number: int
    title: str
    passed: bool
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="1: as hardening.md has it")
    parser.add_argument("--only", default="", help="numbers of experiments, with commas between")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--json", type=Path, help="where to write the report")
    parser.add_argument("--state-dir", type=Path, help="kept; by default a scratch one, kept if something fails")
    options = parser.parse_args()
    wanted = [int(number) for number in options.only.split(",") if number] or [one.number for one in EXPERIMENTS]
    chosen = [one for number in wanted for one in EXPERIMENTS if one.number == number]
    if len(chosen) != len(wanted):
        parser.error(f"there are {', '.join(str(one.number) for one in EXPERIMENTS)}")
    state_dir = options.state_dir or Path(tempfile.mkdtemp(prefix="carebus-chaos-"))
    print(f"seed {options.seed}, scale {options.scale:g}, state in {state_dir}", flush=True)
    try:
        results = asyncio.run(_run(chosen, state_dir, options.scale, options.seed))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    passed = all(result.passed for result in results)
    if options.json:
        report = {
            "seed": options.seed,
            "scale": options.scale,
            "passed": passed,
            "experiments": list(map(asdict, results)),
        }
        options.json.write_text(json.dumps(report, indent=2, default=str) + "\n")
    for result in results:
        print(f"{'passed' if result.passed else 'FAILED'}  {result.number:>2}  {result.seconds:6.1f} s  {result.title}")
        for name, figure in result.figures.items():
            print(f"              {name}: {figure}")
    if passed and options.state_dir is None:
        shutil.rmtree(state_dir, ignore_errors=True)
    return 0 if passed else 1


async def _run(chosen: Sequence[Experiment], state_dir: Path, scale: float, seed: int) -> list[Result]:
    """One after the other; the system stays up between two of the same setup that pass."""
    results: list[Result] = []
    stack, chaos, running = AsyncExitStack(), None, None
    try:
        for place, experiment in enumerate(chosen):
            say = _say(experiment)
            say(experiment.title)
            if chaos is None or experiment.setup != running:
                await stack.aclose()
                chaos, running = None, None
                own = state_dir / f"{place:02d}-experiment-{experiment.number}"
                began = monotonic()
                try:
                    chaos = await _start(stack, own, experiment.setup, scale, seed, say)
                except Exception as error:
                    results.append(_failed(experiment, error, monotonic() - began, say))
                    await stack.aclose()
                    continue
                running = experiment.setup
                say(f"the system is up after {monotonic() - began:.1f} s")
            result = await _one(experiment, chaos, seed, say)
            results.append(result)
            if not result.passed:
                await stack.aclose()
                chaos = None
        return results
    finally:
        await stack.aclose()


async def _start(stack: AsyncExitStack, state_dir: Path, setup: Setup, scale: float, seed: int, say: Any) -> Chaos:
    return await stack.enter_async_context(started(state_dir, setup, scale=scale, seed=seed, say=say))


async def _one(experiment: Experiment, chaos: Chaos, seed: int, say: Any) -> Result:
    chaos.begin(say, random.Random(f"{seed}/{experiment.number}"))
    began = monotonic()
    try:
        figures = await experiment.run(chaos)
    except Exception as error:
        return _failed(experiment, error, monotonic() - began, say)
    say(f"passed after {monotonic() - began:.1f} s")
    return Result(experiment.number, experiment.title, True, monotonic() - began, dict(figures))


def _failed(experiment: Experiment, error: Exception, seconds: float, say: Any) -> Result:
    text = (
        str(error) if isinstance(error, AssertionError) and str(error) else "".join(traceback.format_exception(error))
    )
    say(f"FAILED: {text}")
    return Result(experiment.number, experiment.title, False, seconds, failure=text)


def _say(experiment: Experiment) -> Any:
    def say(text: str) -> None:
        print(f"{strftime('%H:%M:%S')} [{experiment.number:>2}] {text}", flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
