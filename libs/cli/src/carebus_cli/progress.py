"""What is being waited for: lines as things happen, and on a terminal a last line that moves."""

from __future__ import annotations

import time
from typing import Self

from rich.status import Status
from rich.text import Text

from carebus_cli.meter import plain, stderr

__all__ = ["Waiting"]

# Without a terminal there is no moving line, so silence is broken now and then.
_SILENCE_SECONDS = 5.0


class Waiting:
    """Tells of parts and services on stderr until they all are where they should be; a context manager.

    `note` is a `carebus_local.system.Progress`. Nothing is shown with `quiet`.
    """

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self._what = what
        self._quiet = quiet
        self._began = self._told = time.monotonic()
        self._pending: dict[str, None] = {}
        self._status: Status | None = None
        self._waiting = False

    def __enter__(self) -> Self:
        self.start(self._what)
        return self

    def __exit__(self, *_: object) -> None:
        self.done()

    def start(self, what: str) -> None:
        """Wait for something (else) from now on."""
        self._what = what
        self._began = self._told = time.monotonic()
        self._waiting = True
        if stderr.is_terminal and not self._quiet:
            self._status = Status(_Line(self), console=stderr, spinner="dots")
            self._status.start()

    def done(self) -> None:
        """Nothing is waited for any more; what becomes of things is still told."""
        self._waiting = False
        if self._status is not None:
            self._status.stop()
            self._status = None

    def note(self, name: str, what: str) -> None:
        """Tell what became of one."""
        if what in ("starting", "stopping"):
            self._pending[name] = None
            return
        if not what.startswith("fetching"):
            self._pending.pop(name, None)
        if not self._quiet:
            stderr.print(f"{plain(name):<12} {plain(what)}")
        self._told = time.monotonic()

    def tick(self) -> None:
        """Call now and then: breaks a long silence where nothing moves."""
        now = time.monotonic()
        if self._waiting and self._status is None and not self._quiet and now - self._told >= _SILENCE_SECONDS:
            self._told = now
            stderr.print(self.line())

    def line(self) -> str:
        """What is waited for, and for how long now."""
        names = f" {', '.join(self._pending)}" if self._pending else ""
        return f"{self._what}{names}, {time.monotonic() - self._began:.0f} s"


class _Line:
    """Drawn anew with every frame, so that the seconds count."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    def __rich__(self) -> Text:
        return Text(self._waiting.line())
