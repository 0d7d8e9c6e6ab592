"""`carebus consumers`: how far the consuming services are, what waits, and who has stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from carebus_cli.client import ApiError, GatewayClient, Refused
from carebus_cli.connection import (
    DEFAULT_STATE_DIR,
    Connection,
    JsonOption,
    StateDirOption,
    TokenOption,
    UrlOption,
)
from carebus_cli.dlq.options import ReasonOption, check_reason
from carebus_cli.dlq.render import cells, second
from carebus_cli.meter import stdout
from carebus_cli.ops import IMPATIENT, SERVICES, Service, ask_ops, connect_operator, get, post, tell_refusal
from carebus_cli.tables import Cell, print_json_line, print_table

__all__ = ["app"]

app = typer.Typer(help="How far the consumers are, what waits, and who has stopped.", invoke_without_command=True)

_HEADINGS: Final = (
    "SERVICE",
    "GROUP",
    "LAG",
    "PARTITIONS",
    "PARKED PATIENTS",
    "WAITING EVENTS",
    "OPEN DEAD LETTERS",
    "PENDING",
    "STATE",
    "OLDEST WAITING SINCE",
)


@app.callback()
def consumers(
    context: typer.Context,
    *,
    partitions: Annotated[bool, typer.Option("--partitions", help="Also the lag of each partition.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Lag, parked patients, dead letters and pauses of each service. With --json one line each.

    Ends with 1 if a service does not answer; its line is missing then.
    """
    if context.invoked_subcommand is not None:
        return
    connection = connect_operator(url, token, state_dir)
    answers = asyncio.run(_ask_all(connection))
    views = {service: view for service, view in answers.items() if not isinstance(view, ApiError)}
    if as_json:
        for service, view in views.items():
            print_json_line({"service": service, **view})
    elif views:
        print_table(_HEADINGS, [_row(service, view) for service, view in views.items()])
        if partitions:
            stdout.print()
            _print_partitions(views)
    failures = {service: error for service, error in answers.items() if isinstance(error, ApiError)}
    for service, error in failures.items():
        tell_refusal(error, service)
    if failures:
        raise typer.Exit(1 if any(isinstance(error, Refused) for error in failures.values()) else 2)


@app.command("resume")
def resume(
    service: Annotated[Service, typer.Argument(metavar="SERVICE", help="processor or claims.")],
    *,
    reason: ReasonOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Let a consumer go on that stopped itself because too much failed. Fix the cause first: it stops again else."""
    why = check_reason(reason, "resume")
    connection = connect_operator(url, token, state_dir)

    async def work(client: GatewayClient) -> Mapping[str, Any]:
        view: Mapping[str, Any] = await post(client, service, "consumer", "resume", body={"reason": why})
        return view

    view = ask_ops(connection, service, work)
    if as_json:
        print_json_line({"service": service, **view})
    else:
        print_table(_HEADINGS, [_row(service, view)])


async def _ask_all(connection: Connection) -> dict[Service, Mapping[str, Any] | ApiError]:
    async with connection.client(IMPATIENT) as client:
        asked = (get(client, service, "consumer") for service in SERVICES)
        answers = await asyncio.gather(*asked, return_exceptions=True)
    found: dict[Service, Mapping[str, Any] | ApiError] = {}
    for service, answer in zip(SERVICES, answers, strict=True):
        if isinstance(answer, BaseException) and not isinstance(answer, ApiError):
            raise answer
        found[service] = answer
    return found


def _row(service: Service, view: Mapping[str, Any]) -> list[Cell]:
    lag = "unknown" if view["lag"] is None else f"{view['lag']:,}"
    counts = ("parkedPatients", "parkedEvents", "openDeadLetters", "pendingRequests")
    row = cells(service, view["group"], lag, len(view["partitions"]), *(f"{view[name]:,}" for name in counts))
    return [*row, _state(view), *cells(_since(view["oldestWaitingSince"]))]


def _state(view: Mapping[str, Any]) -> Cell:
    paused, replica = view["paused"], view["thisReplica"]
    if paused is not None:
        detail = f": {paused['detail']}" if paused["detail"] else ""
        return str(cells(f"paused ({paused['reason']}{detail}) since {second(paused['at'])}")[0]), "red"
    away = [part for part, name in (("store", "storeAway"), ("broker", "brokerAway")) if replica[name]]
    if away:
        return f"waits for the {' and the '.join(away)}", "yellow"
    return "running", "green"


def _since(time: str | None) -> str:
    """A time, and how long ago that is."""
    if time is None:
        return ""
    at = datetime.fromisoformat(time)
    minutes = max(0, int((datetime.now(at.tzinfo) - at).total_seconds() // 60))
    ago = f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
    return f"{second(time)} ({ago})"


def _print_partitions(views: Mapping[Service, Mapping[str, Any]]) -> None:
    rows = [
        cells(service, view["topic"], one["partition"], one["committed"], one["end"], f"{one['lag']:,}")
        for service, view in views.items()
        for one in view["partitions"]
    ]
    print_table(("SERVICE", "TOPIC", "PARTITION", "COMMITTED", "END", "LAG"), rows)
