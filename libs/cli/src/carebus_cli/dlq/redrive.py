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
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar

from carebus_cli.client import GatewayClient, Refused
from carebus_cli.ops import Service, get, post

__all__ = [
    "IMPATIENT",
    "PATIENT",
    "Action",
    "Asked",
    "Pace",
    "Patience",
    "Progress",
    "Selection",
    "Sight",
    "ask_for",
    "expected",
    "follow",
    "is_paused",
    "look",
    "still_open",
]

T = TypeVar("T")
Action = Literal["redrive", "discard"]

# The most dead letters that one request may name, and that it may choose by a filter.
_MOST_IDS: Final = 1000
_MOST: Final = 20_000
# A page costs the store about as much as all that match: above a second's worth of so many, a page is a few seconds'.
_SMOOTH: Final = 1000
_SECONDS: Final = 5
_POLL: Final = 0.5


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
    # Those left out that no answer names.
    more_skipped: int = 0
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """Of a run: dead letters not carried out yet, how many have which outcome, some that came back: (id, new id)."""

    pending: int
    outcomes: Counter[str]
    again: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long nothing may change while requests are pending, or while events are retried."""

    pending: timedelta
    retrying: timedelta


# For a minute, the store keeps what the transaction of a killed owner was about from the next one. Retrying: a retry or
# two of a handler; what takes longer is told as retrying.
PATIENT: Final = Patience(pending=timedelta(seconds=90), retrying=timedelta(seconds=10))
IMPATIENT: Final = Patience(timedelta(), timedelta())


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
            for chunk in _chunks(chosen.ids, _MOST_IDS)
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
    run: str,
    pace: Pace,
    tell: Callable[[int], None] = lambda _: None,
) -> None:
    """Ask for `action` on all that is chosen, at the pace given and as `run`; `tell` is told how many were asked for.

    A filter must have an `until`, or what comes in meanwhile moves into the set.
    """

    async def ask(selection: Mapping[str, Any]) -> str | None:
        await pace.turn()
        body = {"reason": reason, "dryRun": False, "run": run, **selection}
        answer = await post(client, service, "dead-letters", action, body=body)
        pace.took(answer["requested"])
        asked.requested += answer["requested"]
        asked.skipped += answer["skipped"]
        asked.more_skipped += answer["moreSkipped"]
        tell(asked.requested)
        cursor: str | None = answer["next"]
        return cursor

    if chosen.ids:
        for chunk in _chunks(chosen.ids, min(_MOST_IDS, pace.rate)):
            await ask({"ids": chunk})
    else:
        size = pace.rate if pace.rate <= _SMOOTH else min(_MOST, _SECONDS * pace.rate)
        page: dict[str, Any] = {"filter": chosen.filter, "limit": size}
        while (cursor := await ask(page)) is not None:
            page["cursor"] = cursor
    asked.complete = True


async def follow(
    client: GatewayClient,
    service: Service,
    run: str,
    *,
    pace: Pace,
    patience: Patience = PATIENT,
    tell: Callable[[int], None] = lambda _: None,
) -> Progress:
    """Wait until all that `run` asked for is carried out and has a final outcome, or nothing changes for too long.

    `tell` is told how many are not carried out yet. What others asked for before, or a command that was killed, comes
    first: as long as that gets less, the run's turn comes.
    """

    # Outcomes are counted at the end: the larger the run, the more that costs the store, which has much to do now.
    async def left() -> tuple[int, int]:
        answer = await get(client, service, "runs", run, params={"outcomes": "false"})
        count: int = answer["pending"]["deadLetters"]
        tell(count)
        anybodys: int = (await get(client, service, "requests"))["deadLetters"] if count else 0
        return count, anybodys

    async def progress() -> Progress:
        return _progress(await get(client, service, "runs", run))

    await _until(left, lambda pending: pending[0] == 0, patience.pending, pace)
    return await _until(progress, lambda seen: not seen.outcomes["retrying"], patience.retrying, pace)


async def _until(ask: Callable[[], Awaitable[T]], enough: Callable[[T], bool], stall_after: timedelta, pace: Pace) -> T:
    """Ask until the answer is `enough`, or has not changed for `stall_after`; the last answer."""
    seen, changed_at = await ask(), pace.clock()
    while not enough(seen) and pace.clock() - changed_at < stall_after.total_seconds():
        await pace.sleep(_POLL)
        if (now := await ask()) != seen:
            seen, changed_at = now, pace.clock()
    return seen


async def still_open(
    client: GatewayClient,
    service: Service,
    action: Action,
    chosen: Selection,
    reason: str,
    *,
    pace: Pace,
    patience: Patience = PATIENT,
) -> int:
    """How many of those chosen stay open, though nothing is pending: somebody else's request may be at them still."""

    async def matching() -> int:
        return (await look(client, service, action, chosen, reason)).matching

    return await _until(matching, lambda count: count == 0, patience.pending, pace)


async def is_paused(client: GatewayClient, service: Service) -> bool:
    """Whether the consumer has stopped itself, which not every operator may see: then it is waited for."""
    try:
        return (await get(client, service, "consumer"))["paused"] is not None
    except Refused as refused:
        if refused.status != 403:
            raise
        return False


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


def _progress(answer: Mapping[str, Any]) -> Progress:
    return Progress(
        pending=answer["pending"]["deadLetters"],
        outcomes=Counter(answer["outcomes"]),
        again=[(one["id"], one["deadLetter"]) for one in answer["again"]],
    )


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
