"""What `carebus demo` shows: a live table on a terminal, else a plain line each second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Final, Self

from rich.live import Live
from rich.table import Table

from carebus_cli.demo.lag import GROUPS, Lag
from carebus_cli.demo.ledger import Ledger, percentile
from carebus_cli.demo.probe import Probe
from carebus_cli.meter import stderr

__all__ = ["LiveView", "milliseconds"]

# The rate shown is that of the last seconds; the latency that of the last probes.
_WINDOW: Final = 5.0
_PROBES: Final = 200


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.0f} ms"


class LiveView:
    """Shows the ledger, the lag and the probe as they are whenever `tick` is called; a context manager."""

    def __init__(self, total: int, ledger: Ledger, probe: Probe, *, quiet: bool = False) -> None:
        self._total = total
        self._ledger = ledger
        self._probe = probe
        self._quiet = quiet
        self._began = time.monotonic()
        self._posts: deque[tuple[float, int]] = deque()
        self._lag: Mapping[str, Lag] = {}
        self._committed_before: dict[str, int] = {}
        self._live: Live | None = None

    def begin(self, lag: Mapping[str, Lag]) -> None:
        """From here on records count."""
        self._committed_before = {group: known.committed for group, known in lag.items()}

    def __enter__(self) -> Self:
        if stderr.is_terminal and not self._quiet:
            self._live = Live(console=stderr, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def tick(self, lag: Mapping[str, Lag]) -> None:
        """Show the state now, about once a second. `lag` may be empty while it is not known."""
        now = time.monotonic()
        self._posts.append((now, self._ledger.posts))
        while len(self._posts) > 2 and self._posts[0][0] < now - _WINDOW:
            self._posts.popleft()
        if lag:
            self._lag = lag
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif not self._quiet:
            stderr.print(self._line())

    def _rate(self) -> float:
        (before, posts_before), (now, posts) = self._posts[0], self._posts[-1]
        return (posts - posts_before) / (now - before) if now > before else 0.0

    def _through(self, group: str) -> tuple[str, str]:
        """Records the group is through with since the start, and those it is behind."""
        lag = self._lag.get(group)
        if lag is None:
            return "-", "-"
        return f"{lag.committed - self._committed_before.get(group, 0):,}", f"{lag.behind:,}"

    def _latencies(self) -> tuple[str, str]:
        recent = self._probe.latencies[-_PROBES:]
        return milliseconds(percentile(recent, 50)), milliseconds(percentile(recent, 99))

    def _line(self) -> str:
        processed, behind = self._through("carebus-processor")
        p50, p99 = self._latencies()
        return (
            f"{time.monotonic() - self._began:4.0f} s  accepted {self._ledger.posts - len(self._ledger.failed):,}"
            f" of {self._total:,} ({self._rate():,.0f}/s), {self._ledger.duplicates:,} of them duplicates;"
            f" processed {processed}, lag {behind}; post to processed p50 {p50}, p99 {p99}"
        )

    def _table(self) -> Table:
        table = Table(title=f"a hospital's day, {time.monotonic() - self._began:.0f} s", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        table.add_row("posted", f"{self._ledger.posts:,} of {self._total:,}")
        table.add_row("accepted a second", f"{self._rate():,.0f}")
        table.add_row("duplicates among them", f"{self._ledger.duplicates:,}")
        if self._ledger.failed:
            table.add_row("failed", f"{len(self._ledger.failed):,}")
        for group in GROUPS:
            through, behind = self._through(group)
            table.add_row(f"through {group}", through)
            table.add_row("  lag", behind)
        p50, p99 = self._latencies()
        table.add_row("post to processed, p50", p50)
        table.add_row("post to processed, p99", p99)
        return table
