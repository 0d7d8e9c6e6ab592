"""Commands that a page mentions in passing exist, with the options it gives them."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from carebus_cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for folder in ("", "docs", "docs/decisions", "services/*", "libs/*")
    for page in sorted(ROOT.glob(f"{folder}/*.md".lstrip("/")))
]


def mentioned(tool: str) -> list[tuple[str, str]]:
    """Page and command of every code span that begins with `tool`; the README's table leaves `carebus` out."""
    found = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        name = str(page.relative_to(ROOT))
        found += [(name, span) for span in re.findall(rf"`{tool} ([a-z][^`\n]*)`", text)]
        if tool == "carebus" and (table := re.search(r"\| `carebus …` \|.*?\n\n", text, re.DOTALL)):
            rows = table[0].strip().splitlines()[2:]
            found += [(name, span) for row in rows for span in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert found
    return sorted(set(found))


@pytest.mark.parametrize(("page", "command"), mentioned("carebus"))
def test_a_carebus_command_exists_with_its_options(page: str, command: str) -> None:
    del page
    tokens = command.split()
    words = list(takewhile(re.compile(r"[a-z]+$").match, tokens))
    help_page = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert help_page.exit_code == 0, help_page.output
    assert [token for token in tokens if token.startswith("--") and token not in help_page.output] == []


@pytest.mark.parametrize(("page", "command"), mentioned("make"))
def test_a_make_target_exists(page: str, command: str) -> None:
    del page
    makefile = (ROOT / "Makefile").read_text()
    targets = [token for token in command.split() if "=" not in token]
    assert [target for target in targets if not re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)] == []
