"""Progress on stderr: a bar with a rate on a terminal, else a plain line each second."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

__all__ = ["Meter", "plain", "stderr", "stdout", "while_telling"]

# Texts come from files and servers: nothing in them is markup.
stdout = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
stderr = Console(markup=False, highlight=False, emoji=False, soft_wrap=True, stderr=True)


def plain(value: object) -> str:
    """The value as text that cannot steer a terminal: characters that do not print are shown escaped."""
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


async def while_telling(work: Coroutine[Any, Any, None], tell: Callable[[], None]) -> None:
    """Await `work` and call `tell` ten times a second meanwhile, and once at its end."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=0.1)
            tell()
    finally:
        task.cancel()
    await task


class Meter:
    """Counts `what` up to `total` (None: unknown); a context manager. Shows nothing with `quiet`.

    The rate is that since `began` (monotonic seconds), or since the manager was entered.
    """

    def __init__(self, what: str, total: int | None = None, *, quiet: bool = False, began: float | None = None) -> None:
        self._what = what
        self._total = total
        self._quiet = quiet
        self._count = 0
        self._said = False
        self._given_began = began
        self._began = self._told = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        self._told = time.monotonic()
        self._began = self._told if self._given_began is None else self._given_began
        if stderr.is_terminal and not self._quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                console=stderr,
            )
            self._task = self._bar.add_task(self._what, total=self._total, rate="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._count, rate=self._rate())
            self._bar.stop()
        elif self._said:
            self._say()

    def advance(self, count: int = 1) -> None:
        self.set(self._count + count)

    def set(self, count: int) -> None:
        self._count = count
        now = time.monotonic()
        if self._quiet or now - self._told < (0.1 if self._bar else 1.0):
            return
        self._told = now
        if self._bar is not None:
            self._bar.update(self._task, completed=count, rate=self._rate())
        else:
            self._say()

    def _rate(self) -> str:
        seconds = time.monotonic() - self._began
        return f"{self._count / seconds:,.0f}/s" if seconds > 0 else ""

    def _say(self) -> None:
        self._said = True
        of = f" of {self._total:,}" if self._total is not None else ""
        print(f"{self._what}: {self._count:,}{of} ({self._rate()})", file=sys.stderr, flush=True)
