"""Redrives and discards dead letters: sees what would be done, asks for it page by page, waits for what becomes of it.

Asking only leaves requests that the owners of the partitions carry out, so an interruption loses nothing: what was
asked for is still done, the rest is still open, and asking for the same again is harmless.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from carebus_cli.client import GatewayClient, Refused
from carebus_cli.ops import Service, get, pages, post

__all__ = [
    "STALL_OF_OUTCOMES",
    "Action",
    "Asked",
    "Outcomes",
    "Pace",
    "Selection",
    "Sight",
    "ask_for",
    "carried_out",
    "expected",
    "is_paused",
    "look",
    "settled",
]

Action = Literal["redrive", "discard"]

# The most dead letters that one request may ask for.
_MOST: Final = 1000
_POLL: Final = 0.5
_STALL: Final = timedelta(seconds=30)
# A retry or two of a handler; what takes longer is told as retrying.
STALL_OF_OUTCOMES: Final = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters: those with `ids`, else all open ones that `filter` finds."""

    ids: tuple[str, ...] = ()
    filter: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sight:
    """What would be done: `matching` dead letters (`at_least`: there may be more) of `patients`."""

    matching: int
    at_least: bool
    patients: int
    skipped: list[dict[str, Any]]


@dataclass(slots=True)
class Asked:
    """How far the asking got; kept up to date while it goes on, so that an interruption can tell."""

    requested: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of those asked for, by outcome, and which came back as new dead letters: (id, new id)."""

    counts: Counter[str] = field(default_factory=Counter)
    again: list[tuple[str, str]] = field(default_factory=list)


class Pace:
    """At most `rate` a second from the first wait on. `clock` is in seconds, `sleep` waits for some."""

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.rate = rate
        self.clock = clock
        self.sleep = sleep
        self._due: float | None = None

    async def turn(self) -> None:
        """Wait until more may be asked for."""
        if self._due is not None and (wait := self._due - self.clock()) > 0:
            await self.sleep(wait)

    def took(self, count: int) -> None:
        """So many were asked for just now."""
        now = self.clock()
        self._due = max(now if self._due is None else self._due, now) + count / self.rate


async def look(client: GatewayClient, service: Service, action: Action, chosen: Selection, reason: str) -> Sight:
    """What `action` would do, without doing it. Raises Refused, Unreachable, as all here."""
    body = {"reason": reason, "dryRun": True}
    if not chosen.ids:
        return _sight([await post(client, service, "dead-letters", action, body={**body, "filter": chosen.filter})])
    return _sight(
        [
            await post(client, service, "dead-letters", action, body={**body, "ids": chunk})
            for chunk in _chunks(chosen.ids, _MOST)
        ]
    )


async def ask_for(
    client: GatewayClient,
    service: Service,
    action: Action,
    chosen: Selection,
    reason: str,
    asked: Asked,
    *,
    pace: Pace,
    tell: Callable[[int], None] = lambda _: None,
) -> None:
    """Ask for `action` on all that is chosen, at the pace given; `tell` is told how many were asked for.

    A filter must have an `until`, or what comes in meanwhile moves into the set.
    """
    size = min(_MOST, pace.rate)

    async def ask(selection: Mapping[str, Any]) -> str | None:
        await pace.turn()
        body = {"reason": reason, "dryRun": False, **selection}
        answer = await post(client, service, "dead-letters", action, body=body)
        pace.took(answer["requested"])
        asked.requested += answer["requested"]
        asked.skipped += answer["skipped"]
        tell(asked.requested)
        cursor: str | None = answer["next"]
        return cursor

    if chosen.ids:
        for chunk in _chunks(chosen.ids, size):
            await ask({"ids": chunk})
    else:
        page: dict[str, Any] = {"filter": chosen.filter, "limit": size}
        while (cursor := await ask(page)) is not None:
            page["cursor"] = cursor
    asked.complete = True


async def carried_out(
    client: GatewayClient,
    service: Service,
    *,
    pace: Pace,
    stall_after: timedelta = _STALL,
    tell: Callable[[int], None] = lambda _: None,
) -> int:
    """Wait until no request is pending, or none is carried out for `stall_after`; how many are left.

    `tell` is told that number whenever it has shrunk. Requests of others count too: each owner carries
    them out in turn.
    """
    least: int | None = None
    changed_at = pace.clock()
    while True:
        left: int = (await get(client, service, "requests"))["deadLetters"]
        if least is None or left < least:
            least, changed_at = left, pace.clock()
            tell(left)
        if left == 0 or pace.clock() - changed_at >= stall_after.total_seconds():
            return left
        await pace.sleep(_POLL)


async def is_paused(client: GatewayClient, service: Service) -> bool:
    """Whether the consumer has stopped itself, which not every operator may see: then it is waited for."""
    try:
        return (await get(client, service, "consumer"))["paused"] is not None
    except Refused as refused:
        if refused.status != 403:
            raise
        return False


async def settled(
    client: GatewayClient,
    service: Service,
    action: Action,
    chosen: Selection,
    asked: Asked,
    *,
    began: datetime,
    pace: Pace,
    stall_after: timedelta = STALL_OF_OUTCOMES,
) -> Outcomes:
    """What became of those asked for since `began`, by the service's clock.

    Waits until each has a final outcome, or no other one gets one for `stall_after`: zero looks once.
    """
    most = -1
    changed_at = pace.clock()
    while True:
        outcomes = await _read_outcomes(client, service, action, chosen, began, asked.requested)
        retrying = outcomes.counts["retrying"]
        final = outcomes.counts.total() - retrying
        if final > most:
            most, changed_at = final, pace.clock()
        if (final >= asked.requested and not retrying) or pace.clock() - changed_at >= stall_after.total_seconds():
            return outcomes
        await pace.sleep(_POLL)


async def expected(
    client: GatewayClient, service: Service, action: Action, chosen: Selection, reason: str
) -> int | None:
    """About how many will be asked for, for a progress bar; None if only counting all of them would tell.

    Where so many match that a dry run stops counting, the summary has the number for the filters that it knows.
    """
    sight = await look(client, service, action, chosen, reason)
    if not sight.at_least:
        return sight.matching
    if not set(chosen.filter) <= {"fingerprint", "organizationId", "since", "until"}:
        return None
    params = {name: value for name, value in chosen.filter.items() if name != "fingerprint"}
    groups = await get(client, service, "dead-letters", "summary", params=params)
    wanted = chosen.filter.get("fingerprint")
    return sum(int(group["open"]) for group in groups if wanted in (None, group["fingerprint"]))


async def _read_outcomes(
    client: GatewayClient, service: Service, action: Action, chosen: Selection, began: datetime, enough: int
) -> Outcomes:
    """The outcomes since `began`. A filter may find years of older ones, so it ends once there are `enough`."""
    outcomes = Outcomes()
    if chosen.ids:
        for letter_id in chosen.ids:
            try:
                _note(await get(client, service, "dead-letters", letter_id), began, outcomes)
            except Refused as refused:
                if refused.status != 404:
                    raise
        return outcomes
    done = {"redrive": "redriven", "discard": "discarded"}[action]
    async for page in pages(client, service, "dead-letters", params={**chosen.filter, "status": done}):
        for letter in page:
            _note(letter, began, outcomes)
        if outcomes.counts.total() >= enough:
            break
    return outcomes


def _note(letter: Mapping[str, Any], began: datetime, outcomes: Outcomes) -> None:
    outcome = letter["outcome"]
    if letter["status"] == "open" or not outcome or datetime.fromisoformat(outcome["at"]) < began:
        return
    outcomes.counts[outcome["status"]] += 1
    if outcome["deadLetter"]:
        outcomes.again.append((letter["id"], outcome["deadLetter"]))


def _sight(answers: Sequence[Mapping[str, Any]]) -> Sight:
    return Sight(
        matching=sum(_matching(answer) for answer in answers),
        at_least=any(answer.get("matchingAtLeast") is not None for answer in answers),
        patients=sum(answer["patients"] for answer in answers),
        skipped=[one for answer in answers for one in answer["skipped"]],
    )


def _matching(answer: Mapping[str, Any]) -> int:
    for name in ("matching", "matchingAtLeast", "requested"):
        if answer.get(name) is not None:
            return int(answer[name])
    return 0


def _chunks(ids: Sequence[str], size: int) -> list[list[str]]:
    return [list(ids[begin : begin + size]) for begin in range(0, len(ids), size)]
