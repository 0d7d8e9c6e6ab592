"""The low-water mark of one partition: the offset below which every record has had its effect."""

from __future__ import annotations

__all__ = ["LowWaterMark", "WentBackwards"]


class WentBackwards(RuntimeError):
    """A record came at or below one that was already taken: the client and the runtime disagree."""


class LowWaterMark:
    """Which of a partition's taken records are done. Offsets are taken in growing order, done in any."""

    __slots__ = ("_done", "_open", "_order", "_start", "committed")

    def __init__(self) -> None:
        self._order: list[int] = []  # taken offsets; everything before _start is done
        self._start = 0
        self._open: set[int] = set()
        self._done = 0  # offset after the newest record taken
        self.committed: int | None = None

    def take(self, offset: int) -> None:
        """Note that a record was taken. Raises `WentBackwards` unless the offset grows."""
        if offset < self._done:
            raise WentBackwards(f"offset {offset} came after {self._done - 1}")
        self._order.append(offset)
        self._open.add(offset)
        self._done = offset + 1

    def done(self, offset: int) -> None:
        """Note that a taken record has had its effect and its messages are out."""
        self._open.discard(offset)

    def position(self) -> int | None:
        """The offset to commit: the oldest record not done, or the one after the newest; None before any."""
        order, start, still_open = self._order, self._start, self._open
        while start < len(order) and order[start] not in still_open:
            start += 1
        if start > 4096 and start * 2 > len(order):
            del order[:start]
            start = 0
        self._start = start
        if start < len(order):
            return order[start]
        return self._done or None

    @property
    def next(self) -> int:
        """The offset after the newest record taken; 0 before any."""
        return self._done

    @property
    def in_flight(self) -> int:
        return len(self._open)
