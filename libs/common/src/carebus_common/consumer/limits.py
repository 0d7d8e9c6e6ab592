"""The bounds of one consumer, and what it tells of itself."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta

__all__ = ["Limits", "Recent", "Status"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one consumer."""

    batch_records: int = 4000
    # One batch is planned while another is written; two transactions at once conflict in the store more than
    # they gain.
    concurrent_batches: int = 2
    concurrent_transactions: int = 1
    in_flight_records: int = 20_000
    in_flight_bytes: int = 64 * 1024 * 1024
    commit_interval: timedelta = timedelta(milliseconds=200)
    # Well below the group's session timeout: heartbeats stop while a revocation is handled.
    drain_timeout: timedelta = timedelta(seconds=5)
    # A batch that is refused so often because rows of its patients move is split; a part of at most so many patients
    # is put off for a while instead.
    tries_together: int = 4
    held_together: int = 64
    held_retry: timedelta = timedelta(seconds=1)
    store_retry: timedelta = timedelta(milliseconds=500)
    # Ids of events that this process saw take effect: a hint that saves a transaction, never a decision.
    remembered_ids: int = 100_000
    idle_patients: int = 20_000
    # With more events parked than this, in all partitions together, no more are fetched.
    parked_events: int = 100_000
    # How soon a request, a stop by another replica and a resumption are noticed.
    look_interval: timedelta = timedelta(milliseconds=500)
    count_interval: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Status:
    """What health and operations show: counts only. `stopped` says why the consumer stopped itself, if it did.

    `parked_patients` and `parked_events` are those of the whole group, as of the last count.
    """

    connected: bool
    partitions: tuple[int, ...]
    in_flight: int
    stopped_patients: int
    store_away: bool
    broker_away: bool
    paused: bool
    stopped: str | None = None
    parked_full: bool = False
    parked_patients: int = 0
    parked_events: int = 0


@dataclass(slots=True)
class Recent:
    """The newest ids, bounded."""

    size: int
    ids: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def add(self, name: str) -> None:
        self.ids[name] = None
        if len(self.ids) > self.size:
            self.ids.popitem(last=False)
