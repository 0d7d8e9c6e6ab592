"""Rows of a Synthea CSV export, plain or gzipped, with where each one stands."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

__all__ = ["COLUMNS", "FILES", "BadRow", "MissingFile", "Row", "locate", "read"]

# The columns that the mapping uses; a file may have more (https://github.com/synthetichealth/synthea/wiki/
# CSV-File-Data-Dictionary).
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "encounters": ("Id", "START", "STOP", "PATIENT", "ENCOUNTERCLASS", "CODE", "DESCRIPTION"),
    "conditions": ("START", "STOP", "PATIENT", "ENCOUNTER", "CODE", "DESCRIPTION"),
    "observations": ("DATE", "PATIENT", "ENCOUNTER", "CATEGORY", "CODE", "DESCRIPTION", "VALUE", "UNITS", "TYPE"),
    "procedures": ("START", "STOP", "PATIENT", "ENCOUNTER", "CODE", "DESCRIPTION"),
    "immunizations": ("DATE", "PATIENT", "ENCOUNTER", "CODE", "DESCRIPTION"),
    "medications": ("START", "STOP", "PATIENT", "ENCOUNTER", "CODE", "DESCRIPTION"),
}
FILES: Final = tuple(COLUMNS)


class MissingFile(Exception):
    """The directory is no Synthea export: it lacks a file, or a file lacks a column."""


@dataclass(frozen=True, slots=True)
class BadRow(Exception):
    """A row that makes no event. `reason` names the column and the rule, never the value."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its file's name without ending, the line it ends on, its values by column."""

    file: str
    path: Path
    line: int
    values: dict[str, str]

    def bad(self, reason: str) -> BadRow:
        return BadRow(self.path, self.line, reason)


def locate(directory: Path) -> dict[str, Path]:
    """The path of each of `FILES`, `NAME.csv` before `NAME.csv.gz`. Raises MissingFile, naming all that lack."""
    if not directory.is_dir():
        raise MissingFile(f"{directory} is not a directory")
    found: dict[str, Path] = {}
    for name in FILES:
        for path in (directory / f"{name}.csv", directory / f"{name}.csv.gz"):
            if path.is_file():
                found[name] = path
                break
    missing = [f"{name}.csv[.gz]" for name in FILES if name not in found]
    if missing:
        raise MissingFile(f"{directory} lacks {', '.join(missing)}: is it the csv directory of a Synthea export?")
    return found


def read(name: str, path: Path) -> Iterator[Row | BadRow]:
    """Every row of one file, in its order; a row with too few or too many fields comes as a BadRow.

    Raises MissingFile if the header lacks a column, if the file is no gzip although named so, or is not UTF-8.
    """
    try:
        with _open(path) as text:
            reader = csv.reader(text, strict=True)
            header = next(reader, [])
            lacking = [column for column in COLUMNS[name] if column not in header]
            if lacking:
                raise MissingFile(f"{path} lacks the column {', '.join(lacking)}")
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    yield BadRow(path, reader.line_num, f"has {len(fields)} fields where the header has {len(header)}")
                    continue
                yield Row(name, path, reader.line_num, dict(zip(header, fields, strict=True)))
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, csv.Error) as error:
        raise MissingFile(f"{path} cannot be read: {type(error).__name__}") from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")
