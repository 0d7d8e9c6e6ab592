"""Links within the project lead somewhere, and the tour of one event stays as short as it claims to be."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *(p for d in ("docs", "services", "libs", "bench") for p in (ROOT / d).rglob("*.md")),
    ]
    if ".venv" not in path.parts
)
TOUR = ROOT / "docs/follow-one-event.md"
# `[`name`](path)` in the tour: a function, class or method, and the file that defines it.
STOP = re.compile(r"\[`([\w.]+)(?:\(\))?`\]\(\.\./([\w/.]+\.py)\)")


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        led = (page.parent / path).resolve() if path else page
        assert led.exists(), target
        assert led.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(led), target


def test_a_reader_follows_one_event_through_at_most_six_files() -> None:
    files = list(dict.fromkeys(re.findall(r"\]\(\.\./([\w/.]+\.py)\)", TOUR.read_text())))
    assert 3 <= len(files) <= 6, files
    assert [file.split("/")[1] for file in files] == ["ingest", "common", "processor", "common", "processor", "claims"]


def test_what_the_tour_names_is_where_it_says() -> None:
    stops = STOP.findall(TOUR.read_text())
    assert len(stops) >= 6
    for name, file in stops:
        defined = {
            node.name
            for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        assert set(name.split(".")) <= defined, f"{name} in {file}"


def test_every_decision_is_listed_and_dated() -> None:
    decisions = sorted((ROOT / "docs/decisions").glob("0*.md"))
    index = (ROOT / "docs/decisions/README.md").read_text()
    assert len(decisions) >= 8
    for decision in decisions:
        text = decision.read_text()
        title = re.match(rf"# {decision.name[:4]} (.+)\n\n\d{{4}}-\d\d-\d\d, (accepted|superseded)", text)
        assert title, decision.name
        assert f"| [{decision.name[:4]}]({decision.name}) | {title[1]} |" in index
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
        assert re.search(r"^> \S", text, re.MULTILINE), f"{decision.name} has no line to quote"
