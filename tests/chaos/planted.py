"""Bugs the runtime does not have, put into it by name. The harness must catch each: a checker that cannot fail
proves nothing.

Each is one a hand-written consumer is known for. They are put into a running processor by `tests.chaos.processor`
when CHAOS_PLANTED names one, and exist nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch
from uuid import uuid4

__all__ = ["BUGS", "Bug", "plant"]

# Of the events' topic. Nothing of Carebus may be imported here: failpoints are armed before.
_PARTITIONS = 12


@dataclass(frozen=True, slots=True)
class Bug:
    """`put` plants it, `experiment` is the smallest that catches it, as a violation of one of these kinds."""

    name: str
    put: Callable[[], None]
    experiment: int
    seen_as: frozenset[str]


def plant(name: str | None) -> None:
    """Put the bug into this process. Raises KeyError if there is none of that name."""
    if name:
        BUGS[name].put()


def _replace(target: str, replacement: Any) -> None:
    patch(f"carebus_common.consumer.{target}", replacement).start()


def _no_unique_index() -> None:
    """Nothing in the store says that an event was there before."""
    from carebus_common.consumer import handling

    original = handling._inbox_document

    def anonymous(*args: Any) -> dict[str, Any]:
        return {**original(*args), "_id": str(uuid4())}

    _replace("handling._inbox_document", anonymous)


def _offset_first() -> None:
    """The offset is committed when a record was taken, before it has had its effect."""
    from carebus_common.consumer.offsets import Offsets
    from carebus_common.consumer.runtime import OrderedConsumer

    take, write = Offsets.take, OrderedConsumer._write

    def taken_is_done(self: Offsets, partition: int, offset: int) -> bool:
        taken = take(self, partition, offset)
        self.done(partition, offset)
        return taken

    async def committed_first(self: OrderedConsumer[Any], plan: Any) -> None:
        await self._offsets.commit()
        await write(self, plan)

    _replace("offsets.Offsets.take", taken_is_done)
    _replace("runtime.OrderedConsumer._write", committed_first)


def _parked_check_skipped() -> None:
    """A live event is applied without a look at whether its patient is parked."""
    from carebus_common.consumer.plan_live import plan_live

    def blind(handling: Any, plan: Any, lane: Any, *rest: Any) -> None:
        stored, first = lane.row, len(plan.writes.patients)
        if stored is None or stored.parked is None:
            plan_live(handling, plan, lane, *rest)
            return
        lane.row = replace(stored, parked=None)
        plan_live(handling, plan, lane, *rest)
        lane.row = stored
        for place in range(first, len(plan.writes.patients)):
            write = plan.writes.patients[place]
            plan.writes.patients[place] = replace(write, read=stored, new=replace(write.new, parked=stored.parked))
        plan.rows[lane] = replace(plan.rows[lane], parked=stored.parked)

    _replace("planner.plan_live", blind)


class _OthersPartitions(set[int]):
    """It acts on all partitions, and looks for work in those it does not own."""

    def __contains__(self, _: object) -> bool:
        return True

    def __iter__(self) -> Iterator[int]:
        return (partition for partition in range(_PARTITIONS) if not set.__contains__(self, partition))


def _redrive_without_the_owner() -> None:
    """A redrive is carried out by another replica than the partition's owner, and no write looks whether its patient's
    row still stands."""
    from pymongo import ReplaceOne

    from carebus_common.consumer.parking import Parking

    init = Parking.__init__

    def owns_none(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self._partitions = _OthersPartitions()

    class WhateverStands(ReplaceOne[Any]):
        def __init__(self, as_read: Mapping[str, Any], row: Any, **options: Any) -> None:
            super().__init__({"_id": as_read["_id"]}, row, **options)

    _replace("parking.Parking.__init__", owns_none)
    _replace("store.ReplaceOne", WhateverStands)


def _emit_before_commit() -> None:
    """Messages are published before the transaction that they tell of."""
    from carebus_common.consumer.runtime import OrderedConsumer

    write = OrderedConsumer._write

    async def published_first(self: OrderedConsumer[Any], plan: Any) -> None:
        messages = [message for settled in plan.settled.values() for one in settled for message in one.messages]
        await self._emitter._publish(messages)
        await write(self, plan)

    _replace("runtime.OrderedConsumer._write", published_first)


def _in_memory_retry() -> None:
    """What failed is acknowledged and tried again from memory; the patient's others go on, and a crash forgets it."""
    from carebus_common.consumer.errors import DeadLetter
    from carebus_common.consumer.lanes import Progress
    from carebus_common.consumer.plan import Fate, Settled
    from carebus_common.consumer.plan_live import _park, behind

    remembered_row = -1

    def again(lane: Any, record: Any) -> None:
        if lane.progress is Progress.WAITING:
            lane.records.appendleft(replace(record, row=remembered_row))
        else:
            asyncio.get_running_loop().call_later(0.1, again, lane, record)

    def remember(handling: Any, plan: Any, lane: Any, record: Any, row: Any, error: Exception) -> Any:
        if isinstance(error, DeadLetter):
            return _park(handling, plan, lane, record, row, error)
        asyncio.get_running_loop().call_later(3, again, lane, record)
        return row, Settled(record, Fate.FORGOTTEN)

    def behind_unless_remembered(record: Any, row: Any) -> bool:
        return record.row != remembered_row and behind(record, row)

    _replace("plan_live._park", remember)
    _replace("plan_live.behind", behind_unless_remembered)


_DISORDER = frozenset({"overtaken", "order", "trail", "lost", "twice"})
BUGS = {
    bug.name: bug
    for bug in (
        Bug("no-unique-index", _no_unique_index, 5, frozenset({"twice"})),
        Bug("offset-first", _offset_first, 31, frozenset({"lost"})),
        Bug("parked-check-skipped", _parked_check_skipped, 7, _DISORDER),
        Bug(
            "redrive-without-the-owner",
            _redrive_without_the_owner,
            7,
            frozenset({"twice", "lost", "trail", "order", "stuck"}),
        ),
        Bug("emit-before-commit", _emit_before_commit, 31, frozenset({"emitted"})),
        Bug("in-memory-retry", _in_memory_retry, 61, _DISORDER),
    )
}
