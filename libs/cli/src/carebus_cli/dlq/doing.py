"""Doing what was chosen: the dry run, or the whole way from asking to the outcomes, and how it ended in words."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import uuid4

import typer

from carebus_cli.client import ApiError, GatewayClient, Refused
from carebus_cli.connection import Connection, run_with_client
from carebus_cli.dlq.options import FLAGS, check_reason
from carebus_cli.dlq.redrive import (
    IMPATIENT,
    PATIENT,
    Action,
    Asked,
    Pace,
    Progress,
    Selection,
    Sight,
    ask_for,
    expected,
    follow,
    is_paused,
    look,
    still_open,
)
from carebus_cli.dlq.render import print_skipped, say
from carebus_cli.dlq.times import rfc3339
from carebus_cli.meter import Meter, plain, stderr, stdout
from carebus_cli.ops import Service, ask_ops, get, tell_refusal
from carebus_cli.tables import print_json

__all__ = ["Doing", "act", "run_to_the_end", "settle"]

_DONE: Final = {"redrive": "redriven", "discard": "discarded"}
_SHOWN: Final = 20


@dataclass(slots=True)
class Doing:
    """What was asked for and how far it got; kept up to date, so that an interruption can tell."""

    service: Service
    action: Action
    chosen: Selection
    reason: str
    # All its requests carry it, so that their outcomes can be told from those of anybody else's.
    run: str = field(default_factory=lambda: str(uuid4()))
    asked: Asked = field(default_factory=Asked)
    progress: Progress | None = None
    # What somebody else's requests did before these were carried out.
    by_others: int = 0
    paused: bool = False
    why: str | None = None

    def without_outcome(self) -> int:
        """Those asked for that were waited for and have none."""
        if self.progress is None:
            return 0
        return max(0, self.asked.requested - self.progress.outcomes.total() - self.by_others)

    def failed(self) -> bool:
        """Whether something is not as it was meant to be; what somebody else has done already is fine."""
        again = self.progress is not None and bool(self.progress.outcomes["dead-lettered"])
        left_out = any(one["why"] != "not-open" for one in self.asked.skipped) or self.asked.more_skipped > 0
        return self.why is not None or again or left_out or bool(self.without_outcome())


def act(
    action: Action,
    service: Service,
    connection: Connection,
    chosen: Selection,
    reason: str | None,
    *,
    yes: bool,
    rate: int,
    wait: bool,
    as_json: bool,
) -> None:
    """Do it if `yes`, else tell what would be done. Ends the command, with 1 if something went wrong."""
    if not yes:

        async def see(client: GatewayClient) -> Sight:
            fixed = await _fix(client, service, chosen)
            return await look(client, service, action, fixed, reason or "dry run")

        _show_sight(action, ask_ops(connection, service, see), as_json=as_json)
        return
    doing = Doing(service, action, chosen, check_reason(reason, "--yes"))
    pace = Pace(rate)

    async def work(client: GatewayClient) -> None:
        doing.chosen = await _fix(client, service, chosen)
        total = await expected(client, service, action, doing.chosen, doing.reason)
        with Meter("asking for", total, quiet=as_json) as meter:
            await ask_for(
                client,
                service,
                action,
                doing.chosen,
                doing.reason,
                doing.asked,
                run=doing.run,
                pace=pace,
                tell=meter.set,
            )
        if wait and doing.asked.requested:
            await settle(client, doing, pace, quiet=as_json)

    run_to_the_end(connection, doing, work, as_json=as_json)


async def settle(client: GatewayClient, doing: Doing, pace: Pace, *, quiet: bool) -> None:
    """Wait until what was asked for is carried out, and keep what became of it.

    A consumer that has stopped itself carries nothing out, so it is not waited for.
    """
    requested = doing.asked.requested
    doing.paused = await is_paused(client, doing.service)
    patience = IMPATIENT if doing.paused else PATIENT
    with Meter(_DONE[doing.action], requested, quiet=quiet) as meter:
        progress = await follow(
            client,
            doing.service,
            doing.run,
            pace=pace,
            patience=patience,
            tell=lambda left: meter.set(max(0, requested - left)),
        )
    doing.progress = progress
    if (rest := requested - progress.outcomes.total()) > 0 and not progress.pending:
        left = await still_open(
            client, doing.service, doing.action, doing.chosen, doing.reason, pace=pace, patience=patience
        )
        doing.by_others = max(0, rest - left)


def run_to_the_end(
    connection: Connection, doing: Doing, work: Callable[[GatewayClient], Coroutine[Any, Any, None]], *, as_json: bool
) -> None:
    """Run `work`, tell how it ended and end the command: 0, 1 if something went wrong, 130 after Ctrl-C."""
    code = None
    try:
        run_with_client(connection, work)
    except KeyboardInterrupt:
        doing.why, code = "Interrupted.", 130
    except ApiError as error:
        tell_refusal(error, doing.service)
        doing.why, code = "Stopped.", 1 if isinstance(error, Refused) else 2
    _show_end(doing, as_json=as_json)
    raise typer.Exit(code if code is not None else int(doing.failed()))


async def _fix(client: GatewayClient, service: Service, chosen: Selection) -> Selection:
    """The selection with an end: what comes from now on does not belong to it."""
    if chosen.ids or "until" in chosen.filter:
        return chosen
    # Any answer tells the gateway's clock.
    await get(client, service, "requests")
    return replace(chosen, filter={**chosen.filter, "until": rfc3339(client.now())})


def _show_sight(action: Action, sight: Sight, *, as_json: bool) -> None:
    if as_json:
        matching = {"matchingAtLeast" if sight.at_least else "matching": sight.matching}
        print_json({"dryRun": True, "action": action, **matching, "patients": sight.patients, "skipped": sight.skipped})
        return
    at_least = "at least " if sight.at_least else ""
    count = say(sight.matching, "dead letter", "dead letters")
    stdout.print(f"Would {action} {at_least}{count} of {say(sight.patients, 'patient', 'patients')}.")
    print_skipped(sight.skipped)
    if sight.matching:
        stdout.print("Nothing is done yet: add --yes and --reason.")


def _show_end(doing: Doing, *, as_json: bool) -> None:
    asked, progress = doing.asked, doing.progress
    if as_json:
        print_json(_as_json(doing))
    else:
        stdout.print(f"{say(asked.requested, 'dead letter', 'dead letters')} asked for")
        print_skipped(asked.skipped, more=asked.more_skipped)
        if progress is not None:
            for status, count in sorted(progress.outcomes.items()):
                stdout.print(f"  {plain(status)}: {count:,}")
            if doing.by_others:
                stdout.print(f"  done by somebody else meanwhile: {doing.by_others:,}")
            for letter_id, again in progress.again[:_SHOWN]:
                stdout.print(f"  failed again: {plain(letter_id)}  now {plain(again)}")
            if (more := progress.outcomes["dead-lettered"] - _SHOWN) > 0:
                stdout.print(f"  and {more:,} more")
    if missing := doing.without_outcome():
        stderr.print(f"{missing:,} have no outcome yet. They stay asked for; nobody needs to ask again.")
        stderr.print(
            f"{doing.service} has stopped itself: fix the cause, then `carebus consumers resume {doing.service}`."
            if doing.paused
            else f"`carebus consumers` shows whether {doing.service} is paused, away or behind."
        )
    if doing.why:
        done = "All were asked for" if asked.complete else f"{asked.requested:,} were asked for"
        stderr.print(f"{doing.why} {done}, which are carried out all the same; nothing is done twice.")
        stderr.print(f"To go on: {_command(doing)}")


def _as_json(doing: Doing) -> Mapping[str, Any]:
    progress = doing.progress
    again = [] if progress is None else progress.again
    return {
        "dryRun": False,
        "action": doing.action,
        "run": doing.run,
        "complete": doing.asked.complete,
        "requested": doing.asked.requested,
        "skipped": doing.asked.skipped,
        "moreSkipped": doing.asked.more_skipped,
        "outcomes": None if progress is None else progress.outcomes,
        "failedAgain": [{"id": old, "deadLetter": new} for old, new in again],
        "byOthers": None if progress is None else doing.by_others,
        "withoutOutcome": None if progress is None else doing.without_outcome(),
    }


def _command(doing: Doing) -> str:
    """The command that goes on with the same set."""
    words = ["carebus", "dlq", doing.action]
    if len(doing.chosen.ids) > _SHOWN:
        return "the same command again"
    words += doing.chosen.ids
    for name, value in doing.chosen.filter.items():
        words += [FLAGS[name], value]
    return plain(shlex.join([*words, "--service", doing.service, "--yes", "--reason", doing.reason]))
