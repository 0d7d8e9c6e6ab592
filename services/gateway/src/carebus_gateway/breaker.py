"""A circuit breaker: after several failures in a row an upstream is left alone for a while. Pure.

    closed ──failures in a row──▶ open ──after `rest`──▶ half-open ──the probe succeeds──▶ closed
                                   ▲                        │
                                   └────the probe fails─────┘

Half-open lets one request through at a time, the probe, and refuses the others.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import Enum

__all__ = ["Breaker", "Open", "Permit", "State"]


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Open(Exception):
    """The upstream is being left alone; ask again after `retry_after`."""

    def __init__(self, retry_after: timedelta) -> None:
        super().__init__(f"open for another {retry_after.total_seconds():.1f} s")
        self.retry_after = retry_after


class Permit:
    """Leave for one attempt. Say once how it ended; what is said after that is ignored."""

    __slots__ = ("_breaker", "_era")

    def __init__(self, breaker: Breaker, era: int) -> None:
        self._breaker: Breaker | None = breaker
        self._era = era

    def succeeded(self) -> None:
        """The upstream gave a proper answer, be it a refusal."""
        self._tell(True)

    def failed(self) -> None:
        """It could not be reached, did not answer in time or answered nonsense."""
        self._tell(False)

    def abandoned(self) -> None:
        """Nothing was learned: the caller went away, or sent what could not be passed on."""
        self._tell(None)

    def _tell(self, verdict: bool | None) -> None:
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._settle(self._era, verdict)


class Breaker:
    """`clock` gives seconds and only grows; `on_change` hears of every new state."""

    def __init__(
        self,
        *,
        failures: int,
        rest: timedelta,
        clock: Callable[[], float],
        on_change: Callable[[State], None] = lambda _: None,
    ) -> None:
        self._limit = failures
        self._rest = rest.total_seconds()
        self._clock = clock
        self._on_change = on_change
        self._state = State.CLOSED
        self._failures = 0
        self._opened_at = 0.0
        self._probing = False
        # Grows with every change of state: an attempt that began in an earlier one has nothing to say any more.
        self._era = 0

    @property
    def state(self) -> State:
        return self._state

    def admit(self) -> Permit:
        """Raises Open if this attempt is not to be made."""
        if self._state is State.OPEN:
            waited = self._clock() - self._opened_at
            if waited < self._rest:
                raise Open(timedelta(seconds=self._rest - waited))
            self._enter(State.HALF_OPEN)
        if self._state is State.HALF_OPEN:
            if self._probing:
                raise Open(timedelta(seconds=self._rest))
            self._probing = True
        return Permit(self, self._era)

    def _settle(self, era: int, verdict: bool | None) -> None:
        if era != self._era:
            return
        if verdict is None:
            self._probing = False
        elif self._state is State.HALF_OPEN:
            self._enter(State.CLOSED if verdict else State.OPEN)
        elif verdict:
            self._failures = 0
        else:
            self._failures += 1
            if self._failures >= self._limit:
                self._enter(State.OPEN)

    def _enter(self, state: State) -> None:
        self._state = state
        self._era += 1
        self._failures = 0
        self._probing = False
        if state is State.OPEN:
            self._opened_at = self._clock()
        self._on_change(state)
