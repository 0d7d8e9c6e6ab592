"""Handlers that take their time: coroutines that run beside the batches, each holding up its own patient only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping
from datetime import timedelta
from time import perf_counter
from typing import Generic, TypeVar

from carebus_common.consumer.change import Change, PatientEvent
from carebus_common.consumer.errors import HandlerTimedOut, PauseConsumption
from carebus_common.consumer.lanes import Handled, Lane
from carebus_common.consumer.letters import letter_id
from carebus_common.consumer.plan import Slow
from carebus_common.consumer.recorder import Recorder

__all__ = ["SlowHandlers"]

E = TypeVar("E", bound=PatientEvent)


class SlowHandlers(Generic[E]):
    """Runs them; `ended` is told of each lane whose handler has ended, its result in `lane.handled`.

    One that has not ended by `deadline` has failed. After `PauseConsumption` there is no result, and `pause` passes
    before the lane goes on. `interrupted` are the places of events that were in a handler when the process died.
    """

    def __init__(
        self,
        recorder: Recorder,
        interrupted: Mapping[str, int],
        *,
        deadline: timedelta,
        pause: timedelta,
        ended: Callable[[Lane[E]], None],
    ) -> None:
        self._recorder = recorder
        self._interrupted = interrupted
        self._deadline = deadline.total_seconds()
        self._pause = pause.total_seconds()
        self._ended = ended
        # An event that was in a handler when the process died runs without others of its kind: the next death
        # tells which one it was.
        self._alone = asyncio.Lock()
        self._running: dict[asyncio.Task[None], Lane[E]] = {}

    def start(self, tasks: asyncio.TaskGroup, lane: Lane[E], slow: Slow[E]) -> None:
        task = tasks.create_task(self._handle(lane, slow))
        self._running[task] = lane
        task.add_done_callback(lambda done: self._running.pop(done, None))

    def cancel(self, lanes: Container[Lane[E]] | None = None) -> None:
        """Give up those of these lanes, or all: their events are delivered again."""
        for task, lane in list(self._running.items()):
            if lanes is None or lane in lanes:
                task.cancel()

    async def _handle(self, lane: Lane[E], slow: Slow[E]) -> None:
        try:
            if self._interrupted.get(letter_id(slow.record.position)):
                async with self._alone:
                    await self._run(lane, slow)
            else:
                await self._run(lane, slow)
        finally:
            slow.close()
        self._ended(lane)

    async def _run(self, lane: Lane[E], slow: Slow[E]) -> None:
        started = perf_counter()
        position = slow.record.position
        slot = self._recorder.hold(position.partition, position.offset)
        result: Change | Exception
        try:
            async with asyncio.timeout(self._deadline) as patience:
                result = await slow.answer
        except PauseConsumption:
            await asyncio.sleep(self._pause)
            return
        except TimeoutError as error:
            expired = patience.expired()
            result = HandlerTimedOut(f"it had not ended after {self._deadline:g} s") if expired else error
        except Exception as error:
            result = error
        finally:
            self._recorder.release(slot)
        duration_ms = (perf_counter() - started) * 1000
        lane.handled = Handled(slow.record, slow.seen, result, slow.started, duration_ms)
