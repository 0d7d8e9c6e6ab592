"""Columns on stdout: lines that neither wrap nor shorten, so that they can be searched and cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from rich.text import Text

from carebus_cli.meter import stdout

__all__ = ["Cell", "print_table"]

# Text, or text with a colour for terminals.
Cell: TypeAlias = str | tuple[str, str]


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print rows under headings, each column as wide as its widest text."""
    lines: list[list[tuple[str, str]]] = [[(heading, "bold") for heading in headings]]
    lines += [[cell if isinstance(cell, tuple) else (cell, "") for cell in row] for row in rows]
    widths = [max(len(line[column][0]) for line in lines) for column in range(len(headings))]
    for line in lines:
        text = Text()
        for (word, style), width in zip(line, widths, strict=True):
            text.append(word.ljust(width + 2), style)
        text.rstrip()
        stdout.print(text)
