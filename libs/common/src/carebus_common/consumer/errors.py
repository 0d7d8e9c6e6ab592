"""What happens next with an event that could not be applied, as one tree.

    ConsumerError
    ├── RetryLater        a transient failure of this event: its patient waits, it is tried again
    │   └── HandlerTimedOut   its handler did not end within its deadline
    ├── DeadLetter        this event will never apply as it is: to the dead letters, its patient waits for a person
    │   ├── Undecodable   the record's bytes are not the event its topic promises
    │   └── Crashed       its handler took the process down again and again
    └── PauseConsumption  nothing is wrong with the event: a dependency is away, everybody waits
        └── StoreAway     the store cannot be reached, or a commit's outcome is unknown

A handler raises `RetryLater`, `DeadLetter` or `PauseConsumption`; any other exception of a handler counts as
`RetryLater`. Messages hold no patient data.
"""

from __future__ import annotations

__all__ = [
    "ConsumerError",
    "Crashed",
    "DeadLetter",
    "HandlerTimedOut",
    "PauseConsumption",
    "RetryLater",
    "StoreAway",
    "Undecodable",
]


class ConsumerError(Exception):
    pass


class RetryLater(ConsumerError):
    pass


class HandlerTimedOut(RetryLater):
    pass


class DeadLetter(ConsumerError):
    pass


class Undecodable(DeadLetter):
    pass


class Crashed(DeadLetter):
    pass


class PauseConsumption(ConsumerError):
    pass


class StoreAway(PauseConsumption):
    pass
