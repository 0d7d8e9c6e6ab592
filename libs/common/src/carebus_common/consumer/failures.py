"""When failures mean a bad deploy and not bad events: the mass-failure stop. Pure.

Only original failures count, those of an event's first try: a retry or a redrive says nothing new about the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["FailureLimits", "FailureWindow", "Run"]

# Outcomes of one kind in a row: whether they failed, and how many.
Run = tuple[bool, int]

_BUCKETS: Final = 20


@dataclass(frozen=True, slots=True)
class FailureLimits:
    """Over `share` of the last `window` events, or `consecutive` in a row: the consumer stops itself."""

    share: float = 0.05
    window: int = 10_000
    consecutive: int = 100


@dataclass(slots=True)
class FailureWindow:
    """The outcomes of the last `limits.window` first tries, to within a twentieth of it.

    A window that is not full yet counts as if all before it had succeeded.
    """

    limits: FailureLimits
    consecutive: int = 0
    # [events, failures] of each bucket, oldest first; the last one is being filled.
    buckets: list[list[int]] = field(default_factory=list)

    def add(self, failed: bool, count: int = 1) -> None:
        self.consecutive = self.consecutive + count if failed else 0
        size = self.limits.window // _BUCKETS
        if not self.buckets and not failed:
            return  # nothing to forget yet
        while count:
            if not self.buckets or self.buckets[-1][0] >= size:
                self.buckets.append([0, 0])
                # The one being filled comes on top, so that what is remembered is never less than the window.
                del self.buckets[: -_BUCKETS - 1]
            part = min(count, size - self.buckets[-1][0])
            self.buckets[-1][0] += part
            self.buckets[-1][1] += part * failed
            count -= part
        if not any(failures for _, failures in self.buckets):
            self.buckets.clear()

    def add_all(self, runs: Iterable[Run]) -> None:
        for failed, count in runs:
            self.add(failed, count)

    @property
    def failures(self) -> int:
        return sum(failures for _, failures in self.buckets)

    @property
    def tripped(self) -> str | None:
        """Which limit is reached, in words; None while neither is."""
        if self.consecutive >= self.limits.consecutive:
            return f"{self.consecutive} events in a row failed"
        if self.failures > self.limits.share * self.limits.window:
            return f"{self.failures} of the last {self.limits.window} events failed"
        return None

    def copy(self) -> FailureWindow:
        return FailureWindow(self.limits, self.consecutive, [list(bucket) for bucket in self.buckets])

    def document(self) -> dict[str, Any]:
        return {"consecutive": self.consecutive, "window": [list(bucket) for bucket in self.buckets]}

    @classmethod
    def from_document(cls, limits: FailureLimits, document: Mapping[str, Any] | None) -> FailureWindow:
        if not document:
            return cls(limits)
        return cls(limits, document["consecutive"], [list(bucket) for bucket in document["window"]])
