"""`carebus events get`, `carebus patients get`, `carebus patients history`: what the gateway serves."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, TypeVar

import typer

from carebus_cli.client import ApiError, GatewayClient
from carebus_cli.connection import (
    DEFAULT_ORG,
    DEFAULT_STATE_DIR,
    Connection,
    JsonOption,
    OrgOption,
    StateDirOption,
    TokenOption,
    UrlOption,
    connect_or_exit,
    run_with_client,
    tell_error,
)
from carebus_cli.meter import plain, stderr
from carebus_cli.tables import print_fields, print_json, print_json_line, print_table

__all__ = ["events", "patients", "print_history"]

T = TypeVar("T")

events = typer.Typer(no_args_is_help=True, help="Look at events.")
patients = typer.Typer(no_args_is_help=True, help="Look at patients.")


@events.callback()
def _events() -> None:
    """Keeps `get` a command of its own although it is the only one."""


@events.command("get")
def get_event(
    event_id: str,
    *,
    partition: Annotated[int | None, typer.Option(min=0, help="The receipt's partition.")] = None,
    offset: Annotated[int | None, typer.Option(min=0, help="The receipt's offset.")] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    org: OrgOption = DEFAULT_ORG,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """What became of an event: accepted, parked, processed, dead-lettered.

    An event that is not processed yet is only known by its receipt's partition and offset.
    """
    connection = connect_or_exit(url, token, state_dir, org)
    found = _read(connection, lambda client: client.event(event_id, partition=partition, offset=offset))
    _print_thing(found, as_json=as_json)


@patients.command("get")
def get_patient(
    patient_id: str,
    *,
    url: UrlOption = None,
    token: TokenOption = None,
    org: OrgOption = DEFAULT_ORG,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """A patient's current stay, flags and counts."""
    found = _read(connect_or_exit(url, token, state_dir, org), lambda client: client.patient(patient_id))
    _print_thing(found, as_json=as_json)


@patients.command("history")
def get_history(
    patient_id: str,
    *,
    event_type: Annotated[str | None, typer.Option("--type", help="Only events of this type.")] = None,
    since: Annotated[str | None, typer.Option("--from", help="Only events at or after this RFC 3339 time.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Only events before this RFC 3339 time.")] = None,
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="In the order of `ts`.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Events a page.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="All pages.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
    org: OrgOption = DEFAULT_ORG,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """A patient's history. With --json one line per event."""
    given = {"type": event_type, "from": since, "to": until, "order": "asc" if oldest_first else None}
    params = {name: value for name, value in given.items() if value is not None}

    async def work(client: GatewayClient) -> tuple[list[dict[str, Any]], bool]:
        if everything:
            return [item async for item in client.history(patient_id, params)], False
        items, cursor = await client.history_page(patient_id, {**params, "limit": str(limit)})
        return items, cursor is not None

    items, more = _read(connect_or_exit(url, token, state_dir, org), work)
    if as_json:
        for item in items:
            print_json_line(item)
    else:
        print_history(items)
    if more:
        stderr.print("There are more: --all shows them.")


def print_history(items: list[dict[str, Any]]) -> None:
    """The lines of a history, as the gateway serves them, in columns."""
    rows = []
    for item in items:
        flags = " ".join(f"{flag.get('code')} {flag.get('direction')}" for flag in item.get("flags") or [])
        late = "late" if item.get("late") else ""
        row = (item.get("ts"), item.get("type"), item.get("message", ""), flags, late, item.get("eventId"))
        rows.append([plain(value) for value in row])
    print_table(("TS", "TYPE", "MESSAGE", "FLAGS", "LATE", "EVENT"), rows)


def _read(connection: Connection, work: Callable[[GatewayClient], Coroutine[Any, Any, T]]) -> T:
    try:
        return run_with_client(connection, work)
    except ApiError as error:
        tell_error(error)
        raise typer.Exit(1) from None


def _print_thing(thing: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(thing)
    else:
        print_fields(thing)
