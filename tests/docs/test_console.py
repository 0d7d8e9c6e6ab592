from __future__ import annotations

from pathlib import Path

import pytest

from .console import agrees, sessions


def test_commands_may_continue_and_have_an_answer(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n```console\n$ one \\\n>   two\nanswer\n$ three\n```\n```json\n{}\n```\n")
    steps = sessions(page, "page.md")
    assert [(step.line, step.command, step.output) for step in steps] == [
        (3, "one \\\n  two", "answer"),
        (6, "three", ""),
    ]


def test_a_shell_block_that_would_not_be_executed_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\nrm -rf /\n```\n")
    with pytest.raises(ValueError, match=r"page\.md:1"):
        sessions(page, "page.md")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("", "anything", True),
        ("took … s", "took 3.2 s\n", True),
        ("took … s", "took 3.2 ms\n", False),
        ('{"data": {"id": "0198…", "n": 1}}', '{"data": {"id": "0198ab", "n": 1, "more": 2}}', True),
        ('{"data": {"n": 1}}', '{"data": {"n": 2}}', False),
        ('{"data": {"n": 1}}', '{"data": {}}', False),
        ('{"data": {"offset": "…"}}', '{"data": {"offset": 7}}', True),
        ('{"data": {"offset": …, …}}', '{"data": {"offset": 7, "more": 8}}', True),
        ('{"data": {"offset": …, …}}', '{"data": {"more": 8}}', False),
        ('[{"n": 1}, …]', '[{"n": 1}, {"n": 2}]', True),
        ('["a", "…"]', '["a", "b", "c"]', True),
        ('["a"]', '["a", "b"]', False),
    ],
)
def test_an_answer_agrees_by_what_is_shown_of_it(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) is same
