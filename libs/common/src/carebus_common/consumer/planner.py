"""From due records to one transaction: who is a duplicate, what the handlers change, who is parked, what goes out.

`plan` reads (patients' rows, inbox rows of suspects) and runs handlers; it writes nothing. Nobody looks first
and writes after: a lookup only saves a wasted transaction, and the unique index has the last word. When it
objects, the runtime suspects every event of the batch and plans again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from datetime import timedelta
from itertools import islice
from typing import Generic, TypeVar

from carebus_common.consumer.change import PatientEvent, Position
from carebus_common.consumer.failures import FailureWindow
from carebus_common.consumer.handling import Handling
from carebus_common.consumer.lanes import Lane, row_id_of
from carebus_common.consumer.plan import Plan
from carebus_common.consumer.plan_live import behind, plan_live
from carebus_common.consumer.plan_queue import plan_queue
from carebus_common.consumer.rows import NO_ROW
from carebus_common.consumer.store import Store

__all__ = ["Planner"]

E = TypeVar("E", bound=PatientEvent)

_LATER = timedelta(milliseconds=100)


class Planner(Generic[E]):
    """`window` gives the failures so far; `reached` tells whether all records before one were delivered."""

    def __init__(
        self,
        store: Store,
        handling: Handling[E],
        *,
        window: Callable[[], FailureWindow],
        reached: Callable[[Position], bool],
    ) -> None:
        self._store = store
        self._reached = reached
        self._handling = handling
        self._window = window

    async def plan(self, due: Mapping[Lane[E], int], suspects: Set[str]) -> Plan[E]:
        """Plan the first `due[lane]` records of each lane. Raises `PauseConsumption`.

        `suspects` are inbox ids that may have had their effect already; they are looked up. Once failures reach
        their limit, the lanes that follow are left out of the plan.
        """
        await self._read_rows(due)
        known = await self._store.inbox_rows(self._to_look_up(due, suspects))
        plan: Plan[E] = Plan(self._window().copy())
        planned: set[str] = set()
        try:
            for lane, count in due.items():
                if plan.trial.tripped:
                    break
                if lane.revoked:
                    continue
                if lane.queued and self._early(lane):
                    plan.stale[lane] = _LATER
                else:
                    plan_lane = plan_queue if lane.queued else plan_live
                    plan_lane(self._handling, plan, lane, count, known, planned)
        except BaseException:
            plan.close()
            raise
        return plan

    def _early(self, lane: Lane[E]) -> bool:
        """Whether events before the queue may not have been published: an earlier owner's that are delivered again."""
        parked = lane.row.parked if lane.row is not None else None
        if parked is None:
            return False
        first, live = parked.first, next(iter(lane.records), None)
        return not self._reached(first) or (
            live is not None
            and (live.position.topic, live.position.partition) == (first.topic, first.partition)
            and live.position.offset < first.offset
        )

    async def _read_rows(self, due: Mapping[Lane[E], int]) -> None:
        unread = {row_id_of(lane.key): lane for lane in due if lane.row is None}
        if not unread:
            return
        rows = await self._store.patient_rows(list(unread))
        for row_id, lane in unread.items():
            lane.row = rows.get(row_id, NO_ROW)

    @staticmethod
    def _to_look_up(due: Mapping[Lane[E], int], suspects: Set[str]) -> list[str]:
        ids: dict[str, None] = {}
        for lane, count in due.items():
            row, queued = lane.row or NO_ROW, lane.queued
            for record in islice(lane.front, count):
                if record.event is not None and (queued or behind(record, row) or record.inbox_id in suspects):
                    ids[record.inbox_id] = None
        return list(ids)
