"""One experiment after the other, and the planted bugs."""

from __future__ import annotations

import random
import traceback
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, strftime
from typing import Any

from .experiments.table import EXPERIMENTS, PROBES
from .harness import Chaos, Experiment, Failed, Say, started
from .oracle import judge
from .planted import BUGS, Bug

__all__ = ["Result", "run_all", "run_planted"]

# Each experiment as small as it gets.
_PLANTED_SCALE = 0.0


@dataclass
class Result:
    """What came of an experiment; `failure` says why it did not pass."""

    number: int
    title: str
    passed: bool
    seconds: float
    figures: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None


async def run_all(chosen: Sequence[Experiment], state_dir: Path, scale: float, seed: int) -> list[Result]:
    """One after the other; the system stays up between two of the same setup that pass."""
    results: list[Result] = []
    chaos: Chaos | None = None
    setup = None
    async with AsyncExitStack() as system:
        for place, experiment in enumerate(chosen):
            say = _voice(f"{experiment.number:>2}")
            say(experiment.title)
            began = monotonic()
            try:
                if chaos is None or experiment.setup != setup:
                    chaos = None
                    await system.aclose()
                    own = state_dir / f"{place:02d}-experiment-{experiment.number}"
                    new = started(own, experiment.setup, scale=scale, seed=seed, say=say)
                    chaos, setup = await system.enter_async_context(new), experiment.setup
                    say(f"the system is up after {monotonic() - began:.1f} s")
                results.append(await _one(experiment, chaos, say, seed))
            except Exception as error:
                chaos = None
                why = _why(error)
                say(f"FAILED: {why}")
                results.append(Result(experiment.number, experiment.title, False, monotonic() - began, failure=why))
    return results


async def _one(experiment: Experiment, chaos: Chaos, say: Say, seed: int) -> Result:
    chaos.begin(say, random.Random(f"{seed}/{experiment.number}"))
    began = monotonic()
    figures = await experiment.run(chaos)
    seconds = monotonic() - began
    say(f"passed after {seconds:.1f} s")
    return Result(experiment.number, experiment.title, True, seconds, figures)


async def run_planted(state_dir: Path, seed: int, names: Sequence[str] | None = None) -> list[Result]:
    """Plant each bug and run the smallest experiment that catches it; passed if the oracle sees what it should."""
    return [await _planted(BUGS[name], state_dir / name, seed) for name in names or BUGS]


async def _planted(bug: Bug, state_dir: Path, seed: int) -> Result:
    say = _voice(bug.name)
    (experiment,) = (one for one in (*EXPERIMENTS, *PROBES) if one.number == bug.experiment)
    title = f"planted: {bug.name}"
    say(f"{experiment.title}, with the bug")
    began = monotonic()
    kinds: frozenset[str] = frozenset()
    how = "the experiment passed"
    async with started(
        state_dir, experiment.setup, scale=_PLANTED_SCALE, seed=seed, say=say, planted=bug.name
    ) as chaos:
        try:
            await _one(experiment, chaos, say, seed)
        except Exception as error:
            how = _why(error)
            # It may have failed on its way to the verdict: then the oracle has the last word. What has not come to an
            # end by then is missing and not lost.
            kinds = error.kinds if isinstance(error, Failed) else frozenset()
            kinds = kinds or await _judged(chaos) - {"lost", "emitted", "claims"}
    caught = bool(kinds & bug.seen_as)
    say(f"{'caught' if caught else 'NOT CAUGHT'}: {', '.join(sorted(kinds)) or how}")
    figures = {"seen as": sorted(kinds), "how": how.splitlines()[0]}
    return Result(bug.experiment, title, caught, monotonic() - began, figures, None if caught else how)


async def _judged(chaos: Chaos) -> frozenset[str]:
    kinds: set[str] = set()
    for sender in chaos.senders:
        found = await chaos.reader.found(sender.organization)
        kinds.update(violation.kind for violation in judge(sender.ledger, found, minimum_accepted=0.0))
    return frozenset(kinds)


def _why(error: Exception) -> str:
    if isinstance(error, AssertionError) and str(error):
        return str(error)
    return "".join(traceback.format_exception(error))


def _voice(name: str) -> Say:
    def say(text: str) -> None:
        print(f"{strftime('%H:%M:%S')} [{name}] {text}", flush=True)

    return say
