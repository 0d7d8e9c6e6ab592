"""Every command in the README and the docs is executed, against a system that was started as `carebus up` does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .console import Step, agrees, sessions

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "services").glob("*/README.md")) + sorted((ROOT / "libs").glob("*/README.md"))
# A runbook's commands are for a system in trouble: test_runbooks.py makes it and runs them.
PAGES.remove(ROOT / "docs/operations.md")
BIN = Path(sys.executable).parent

# The docs show the ports that a machine with nothing else on them gets.
SHOWN = {"gateway": "http://127.0.0.1:8000", "ingest": "http://127.0.0.1:8001"}

# What is executed elsewhere, and where.
ELSEWHERE = {
    r"make run( ONCE=1)?": ".ci/run",
    r"make test": "the run that this test is part of",
    r"\.ci/run": "the run that this test is part of",
    r"docker compose .*": "no engine runs here; tests/deploy holds the file against the specification",
}

# Reading soon after writing: a person takes longer to type the next command than an event takes to arrive.
READS = re.compile(r"curl (?!.*(-d|--data|-X)\b)|carebus (events|patients|status)\b", re.DOTALL)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a shell next to a running `carebus up`; `URL_<NAME>` are the URLs."""
    state_dir = tmp_path_factory.mktemp("docs") / "state"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CAREBUS_")},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "CAREBUS_STATE_DIR": str(state_dir),
    }
    try:
        _carebus("up", "--detach", environment=environment)
        urls = json.loads(_carebus("status", "--json", environment=environment))["urls"]
        yield environment | {f"URL_{name.upper()}": url for name, url in urls.items()}
    finally:
        _carebus("down", environment=environment)


def _carebus(*words: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [BIN / "carebus", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_do_what_it_says(page: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    steps = [step for step in sessions(page, str(page.relative_to(ROOT))) if not _is_elsewhere(step)]
    if not steps:
        return
    environment: dict[str, str] = request.getfixturevalue("system")
    variables = tmp_path / "variables"
    variables.touch()
    for step in steps:
        printed, code = _execute(step, environment, variables)
        assert code == 0, f"{step}: exit {code}\n{printed}"
        assert agrees(step.output, printed), f"{step}: shown\n{step.output}\nprinted\n{printed}"


def _is_elsewhere(step: Step) -> bool:
    return any(re.fullmatch(pattern, step.command.split("#")[0].strip(), re.DOTALL) for pattern in ELSEWHERE)


def _execute(step: Step, environment: dict[str, str], variables: Path) -> tuple[str, int]:
    deadline = time.monotonic() + (15 if READS.match(step.command) else 0)
    while True:
        printed, code = _run(_on_this_machine(step.command, environment), environment, variables)
        if (code == 0 and agrees(step.output, printed)) or time.monotonic() >= deadline:
            return printed, code
        time.sleep(0.2)


def _on_this_machine(command: str, environment: dict[str, str]) -> str:
    for name, shown in SHOWN.items():
        command = command.replace(shown, environment[f"URL_{name.upper()}"])
    return command


def _run(command: str, environment: dict[str, str], variables: Path) -> tuple[str, int]:
    """Run one command in bash, with the variables that earlier commands of its page have set."""
    script = f"set -a -o pipefail\n. '{variables}'\n{command}\nend=$?\nexport -p > '{variables}'\nexit $end\n"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    printed = done.stdout
    for name, shown in SHOWN.items():
        printed = printed.replace(environment[f"URL_{name.upper()}"], shown)
    return printed, done.returncode
