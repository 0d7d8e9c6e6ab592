"""Columns and fields on stdout: lines that neither wrap nor shorten, so that they can be searched and cut."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
from rich.text import Text

from carebus_cli.meter import plain, stdout

__all__ = ["Cell", "print_fields", "print_json", "print_json_line", "print_table"]

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


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print each name with its value beside it: text as it is, all else as JSON."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        text = value if isinstance(value, str) else msgspec.json.format(msgspec.json.encode(value)).decode()
        indented = f"\n{' ' * (width + 2)}".join(map(plain, text.split("\n")))
        stdout.print(f"{plain(name).ljust(width)}  {indented}")


def print_json(thing: Any) -> None:
    """Print one thing as indented JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(thing)).decode() + "\n")


def print_json_line(thing: Any) -> None:
    """Print one entry of a list as a line of JSON."""
    sys.stdout.write(msgspec.json.encode(thing).decode() + "\n")
