"""A patient's trail: how many events were applied to its state, and a hash chained over their ids in that order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

__all__ = ["FIELD", "Trail", "trail_of"]

# The field of the state in which the handler of `processor.py` keeps it.
FIELD = "chaosTrail"


class Trail(NamedTuple):
    applied: int = 0
    chain: str = ""

    def then(self, event_id: str) -> Trail:
        """The trail after one more event. Who applies one twice, or two the other way round, gets another chain."""
        return Trail(self.applied + 1, blake2b(f"{self.chain}{event_id}".encode(), digest_size=8).hexdigest())

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> Trail:
        return cls(*(state or {}).get(FIELD, ()))


def trail_of(event_ids: Iterable[str]) -> Trail:
    trail = Trail()
    for event_id in event_ids:
        trail = trail.then(event_id)
    return trail
