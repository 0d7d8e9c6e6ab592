"""What stops a consumer: too many failures. All replicas share the group's row in the store, which outlives them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from carebus_common.consumer.failures import FailureLimits, FailureWindow, Run
from carebus_common.consumer.parked_store import ControlRow, ParkedStore
from carebus_common.consumer.recorder import Recorder
from carebus_common.logging import get_logger

__all__ = ["Control"]

log = get_logger(__name__)


class Control:
    """`window` is what the group failed so far, as far as this replica knows; `stopped` says why it is stopped.

    `interrupted` counts, by the event's place, how often the process died with it in a handler.
    """

    def __init__(self, store: ParkedStore, group: str, topic: str, limits: FailureLimits, recorder: Recorder) -> None:
        self.window = FailureWindow(limits)
        self.stopped: str | None = None
        self.interrupted: dict[str, int] = {}
        # Until the store was asked once, nobody knows whether the group is stopped.
        self.ready = False
        self._store = store
        self._group = group
        self._topic = topic
        self._limits = limits
        self._recorder = recorder
        self._version = 0
        self._unsaved: list[Run] = []
        self._handled_since: list[str] = []

    def tried(self, runs: Sequence[Run]) -> bool:
        """Count committed first tries; whether they are to be saved at once."""
        if not runs or (not self.window.buckets and not any(failed for failed, _ in runs)):
            return False
        self.window.add_all(runs)
        self._unsaved += runs
        if self.stopped is None and (why := self.window.tripped):
            self._stop(why)
        return any(failed for failed, _ in runs)

    @property
    def unsaved(self) -> bool:
        """Whether failures are not in the store yet."""
        return any(failed for failed, _ in self._unsaved)

    def handled(self, place: str) -> None:
        """An event that was interrupted before is settled now."""
        if self.interrupted.pop(place, None) is not None:
            self._handled_since.append(place)

    async def sync(self) -> None:
        """Read the group's row, add to it what happened here, and stop or go on as it says. Raises `StoreAway`."""
        row = await self._store.control(self._group)
        version = row.version if row else 0
        if version != self._version or not self.ready:
            self.window = FailureWindow.from_document(self._limits, row.failures if row else None)
            self.window.add_all(self._unsaved)
            self._version = version
            paused = row.paused if row else None
            if paused is None and self.stopped is not None and self.window.tripped is None:
                log.info("consumer-resumed", group=self._group)
                self.stopped = None
            elif paused is not None and self.stopped is None:
                self._stop(str(paused.get("detail", "")))
        if self._unsaved:
            await self._save(row.paused if row else None)
        self.ready = True

    async def _save(self, paused: Any) -> None:
        unsaved = len(self._unsaved)
        if paused is None and (why := self.window.tripped):
            paused = {"reason": "failures", "detail": why, "at": datetime.now(UTC)}
        saved = ControlRow(self._version + 1, paused, self.window.document())
        if await self._store.save_control(self._group, saved):
            self._version = saved.version
            del self._unsaved[:unsaved]

    def _stop(self, why: str) -> None:
        self.stopped = why
        log.error("consumer-stopped", group=self._group, why=why)

    async def sync_interrupted(self) -> None:
        """Report what an earlier process left in its handlers, and learn what others left. Raises `StoreAway`."""
        if self._recorder.interrupted:
            await self._store.report_interrupted(self._topic, self._recorder.interrupted, datetime.now(UTC))
            log.warning("events-were-interrupted", group=self._group, events=len(self._recorder.interrupted))
            self._recorder.reported()
        if self._handled_since:
            done = len(self._handled_since)
            await self._store.forget_interrupted(self._handled_since)
            del self._handled_since[:done]
        found = await self._store.interrupted()
        # The planner holds on to this very dict.
        self.interrupted.clear()
        self.interrupted.update(found)
