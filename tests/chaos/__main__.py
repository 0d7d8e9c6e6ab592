"""`python -m tests.chaos [--scale 0.1] [--only 1,6] [--seed N] [--json FILE] [--planted]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from .experiments.table import EXPERIMENTS
from .planted import BUGS
from .run import run_all, run_planted


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="1: as hardening.md has it")
    parser.add_argument("--only", default="", help="numbers of experiments, with commas between")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--json", type=Path, help="where to write the report")
    parser.add_argument("--state-dir", type=Path, help="kept; by default a scratch one, kept if something fails")
    parser.add_argument("--planted", action="store_true", help="plant each known bug and expect it to be caught")
    parser.add_argument("--bug", action="append", choices=list(BUGS), help="with --planted: only this one")
    options = parser.parse_args()
    wanted = [int(number) for number in options.only.split(",") if number] or [one.number for one in EXPERIMENTS]
    chosen = [one for number in wanted for one in EXPERIMENTS if one.number == number]
    if len(chosen) != len(wanted):
        parser.error(f"there are {', '.join(str(one.number) for one in EXPERIMENTS)}")
    state_dir = options.state_dir or Path(tempfile.mkdtemp(prefix="carebus-chaos-"))
    print(f"seed {options.seed}, scale {options.scale:g}, state in {state_dir}", flush=True)
    try:
        if options.planted:
            results = asyncio.run(run_planted(state_dir, options.seed, options.bug))
        else:
            results = asyncio.run(run_all(chosen, state_dir, options.scale, options.seed))
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


if __name__ == "__main__":
    sys.exit(main())
