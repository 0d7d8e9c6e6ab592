"""What happens next with an event that could not be applied, as one tree.

    ConsumerError
    ├── RetryLater        a transient failure of this event: its patient waits, it is tried again
    ├── DeadLetter        this event will never apply as it is: to the dead letters, its patient waits for a person
    │   └── Undecodable   the record's bytes are not the event its topic promises
    └── PauseConsumption  nothing is wrong with the event: a dependency is away, everybody waits
        └── StoreAway     the store cannot be reached, or a commit's outcome is unknown

A handler raises `RetryLater` or `DeadLetter`; any other exception of a handler counts as `RetryLater`.
Messages hold no patient data.
"""

from __future__ import annotations

__all__ = ["ConsumerError", "DeadLetter", "PauseConsumption", "RetryLater", "StoreAway", "Undecodable"]


class ConsumerError(Exception):
    pass


class RetryLater(ConsumerError):
    pass


class DeadLetter(ConsumerError):
    pass


class Undecodable(DeadLetter):
    pass


class PauseConsumption(ConsumerError):
    pass


class StoreAway(PauseConsumption):
    pass
