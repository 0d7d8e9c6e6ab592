"""The console sessions of a Markdown page: what is typed, and what is said to come back.

    ```console
    $ a command \\
    >     on two lines
    what it prints, where … stands for anything
    ```

An answer that is JSON is compared by its named parts: what the page shows must be there, what it leaves out may be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Step", "agrees", "sessions"]

ANYTHING = "…"


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a page and the output shown for it (empty: none is shown, any will do)."""

    page: str
    line: int
    command: str
    output: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def sessions(page: Path, name: str) -> list[Step]:
    """Every command of the page's `console` blocks, in order. Raises ValueError for a block of another shell."""
    steps: list[Step] = []
    for language, number, lines in _blocks(page.read_text().splitlines()):
        if language in {"bash", "sh", "shell", "zsh"}:
            raise ValueError(f"{name}:{number}: use a console block, so that it is executed")
        if language == "console":
            steps.extend(_steps(name, number, lines))
    return steps


def _blocks(lines: list[str]) -> Iterator[tuple[str, int, list[str]]]:
    language: str | None = None
    begun, held = 0, list[str]()
    for number, line in enumerate(lines, 1):
        fence = re.match(r"```(\w*)", line)
        if not fence:
            held.append(line)
        elif language is None:
            language, begun, held = fence[1], number, []
        else:
            yield language, begun, held
            language = None


def _steps(name: str, begun: int, lines: list[str]) -> Iterator[Step]:
    command, output, at = "", list[str](), 0
    for number, line in enumerate(lines, begun + 1):
        if line.startswith("$ "):
            if command:
                yield Step(name, at, command, "\n".join(output).strip())
            command, output, at = line[2:], [], number
        elif command.endswith("\\") and not output:
            command += "\n" + line.removeprefix("> ")
        else:
            output.append(line)
    if command:
        yield Step(name, at, command, "\n".join(output).strip())


def agrees(shown: str, printed: str) -> bool:
    """Whether `printed` is what the page shows."""
    if not shown:
        return True
    try:
        return _within(json.loads(_quoted(shown)), json.loads(printed))
    except json.JSONDecodeError:
        return re.fullmatch(_pattern(shown), printed.strip(), re.DOTALL) is not None


def _quoted(shown: str) -> str:
    """The JSON that a page means by a bare …: any value, and more names or elements."""
    shown = re.sub(rf"([:\[]\s*){ANYTHING}", rf'\1"{ANYTHING}"', shown)
    return re.sub(rf",\s*{ANYTHING}(\s*[}}\]])", rf', "{ANYTHING}"\1', shown).replace(f', "{ANYTHING}"}}', "}")


def _within(shown: Any, actual: Any) -> bool:
    match shown:
        case dict():
            return isinstance(actual, dict) and all(
                name in actual and _within(value, actual[name]) for name, value in shown.items() if name != ANYTHING
            )
        case list():
            more = shown[-1:] == [ANYTHING]
            parts = shown[:-1] if more else shown
            return (
                isinstance(actual, list)
                and (len(actual) >= len(parts) if more else len(actual) == len(parts))
                and all(_within(part, value) for part, value in zip(parts, actual, strict=False))
            )
        case str() if shown == ANYTHING:
            return True
        case str():
            return isinstance(actual, str | int | float) and re.fullmatch(_pattern(shown), str(actual)) is not None
        case _:
            return bool(shown == actual)


def _pattern(text: str) -> str:
    return ".*".join(re.escape(part) for part in text.split(ANYTHING))
