"""The commands of one section of a page, run in turn, as whoever follows it would."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from .console import Step, agrees, sessions

__all__ = ["Runbook", "sections"]

ROOT = Path(__file__).parents[2]
READS = re.compile(r"carebus (status|logs|topics tail|consumers( --partitions)?$|dlq (summary|list|show))")


def sections(page: Path) -> dict[str, list[Step]]:
    """The commands under each heading that has some."""
    found: dict[str, list[Step]] = {}
    lines = page.read_text().splitlines()
    for step in sessions(page, str(page.relative_to(ROOT))):
        title = next(match[1] for line in reversed(lines[: step.line]) if (match := re.match(r"#+ (.+)", line)))
        found.setdefault(title, []).append(step)
    return found


@dataclass
class Runbook:
    """`environment` is the shell's; `names` has what the examples of the page (ids, fingerprints) are in truth."""

    steps: list[Step]
    environment: Mapping[str, str]
    variables: Path
    names: dict[str, str] = field(default_factory=dict)
    done: int = 0

    async def follow(self, *, code: int | None = 0, within: float = 30, learn: Mapping[str, str] | None = None) -> str:
        """Run the next command until it prints what the page shows and ends with `code` (None: any), at most `within`.

        `learn` gives, by an example of the page, the pattern by which it is read off the output. Returns the output.
        Only commands that change nothing are run again.
        """
        step = self.steps[self.done]
        self.done += 1
        deadline = monotonic() + (within if READS.match(step.command) else 0)
        while True:
            printed, ended = await self._run(self._in_truth(step.command))
            for example, pattern in (learn or {}).items():
                if found := re.search(pattern, printed, re.MULTILINE):
                    self.names[example] = found[1]
            if code in (None, ended) and agrees(self._in_truth(step.output), printed):
                return printed
            assert monotonic() < deadline, f"{step}: exit {ended}, shown\n{step.output}\nprinted\n{printed}"
            await asyncio.sleep(0.3)

    def _in_truth(self, text: str) -> str:
        for example, truth in self.names.items():
            text = text.replace(example, truth)
        return text

    async def _run(self, command: str) -> tuple[str, int]:
        script = (
            f"set -a -o pipefail\n. '{self.variables}'\n{command}\nend=$?\nexport -p > '{self.variables}'\nexit $end\n"
        )
        process = await asyncio.create_subprocess_exec(
            "bash",
            "--norc",
            "-c",
            script,
            cwd=ROOT,
            env=dict(self.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(60):
            printed, _ = await process.communicate()
        return printed.decode(), process.returncode or 0
