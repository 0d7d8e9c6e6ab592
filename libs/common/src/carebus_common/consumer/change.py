"""What a handler is given and what it returns: values, so that a test compares them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from carebus_common.messages import Message

__all__ = ["Change", "Delivery", "Handler", "PatientEvent", "Position", "State"]

State = Mapping[str, Any]


class PatientEvent(Protocol):
    """What the runtime needs to know of an event: whose it is and which one."""

    @property
    def event_id(self) -> UUID: ...
    @property
    def organization_id(self) -> str: ...
    @property
    def patient_id(self) -> str: ...


E = TypeVar("E", bound=PatientEvent)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A record's place in the log."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Delivery(Generic[E]):
    """One event at its place in the log, with the time (UTC) at which its handling began."""

    event: E
    position: Position
    now: datetime
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What one event does; the runtime writes it, together with the event's inbox row, or none of it.

    `row` are the inbox row's fields beside the runtime's own; `state` is the patient's whole new state, or
    `None` to leave it as it is; `messages` are published after the commit. Values must be BSON-encodable.
    `effects` are what else the event does in the owner's database: any values, which the `effects` of the runtime's
    `Store` carries out in the same transaction, exactly when the inbox row is written.
    """

    row: Mapping[str, Any]
    state: State | None = None
    messages: Sequence[Message] = field(default=())
    effects: Sequence[Any] = ()


# A handler looks at the patient's state (None: nothing stored yet) and the delivery, and returns the change.
# It may be called again for the same delivery, so it must not act on the world beyond idempotent calls.
# A coroutine function may take its time: only its own patient waits for it.
Handler = Callable[[State | None, Delivery[E]], Change | Awaitable[Change]]
