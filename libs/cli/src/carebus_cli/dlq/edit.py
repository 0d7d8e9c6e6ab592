"""`carebus dlq edit`: an event as it should have been, by hand or from a file, and then redriven."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from carebus_cli.client import GatewayClient, Refused
from carebus_cli.connection import (
    DEFAULT_STATE_DIR,
    Connection,
    JsonOption,
    StateDirOption,
    TokenOption,
    UrlOption,
)
from carebus_cli.dlq.doing import Doing, run_to_the_end, settle
from carebus_cli.dlq.options import NoWaitOption, ReasonOption, check_reason
from carebus_cli.dlq.redrive import Asked, Pace, Selection
from carebus_cli.meter import plain, stderr, stdout
from carebus_cli.ops import Service, ServiceOption, ask_ops, connect_operator, post, tell_refusal

__all__ = ["edit"]


def edit(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="The dead letter.")],
    *,
    file: Annotated[
        str | None, typer.Option("--file", help="The whole event as JSON, or - for standard input; else $EDITOR.")
    ] = None,
    reason: ReasonOption = None,
    no_wait: NoWaitOption = False,
    service: ServiceOption = "processor",
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Correct the event of a dead letter, then redrive it. It must keep its eventId, patientId and organizationId.

    $EDITOR gets the event as it is, which is audited, in a file that is removed afterwards. It is checked like any
    event; where it was changed is kept, without values.
    """
    why = check_reason(reason, "edit")
    given = None if file is None else _read_file(file)
    connection = connect_operator(url, token, state_dir, phi=True)
    value = given if given is not None else _by_hand(connection, service, letter_id, why)
    asked = Asked(requested=1, complete=True)
    doing = Doing(service, "redrive", Selection(ids=(letter_id,)), why, asked=asked)
    while not _accepted(connection, letter_id, value, doing, again=given is None):
        value = _edited(_indented(value))
    _see_redriven(connection, doing, wait=not no_wait, as_json=as_json)


def _by_hand(connection: Connection, service: Service, letter_id: str, reason: str) -> dict[str, Any]:
    """The event as the editor left it. Ends the command if it left it as it was."""

    async def reveal(client: GatewayClient) -> dict[str, Any]:
        shown: dict[str, Any] = await post(
            client, service, "dead-letters", letter_id, "reveal", body={"reason": reason}
        )
        return shown

    shown = ask_ops(connection, service, reveal)
    before = shown["edited"] or shown["payload"]
    if not isinstance(before, dict):
        stderr.print("What it holds is no JSON object to edit: give the whole event with --file.", style="red")
        raise typer.Exit(1)
    after = _edited(_indented(before))
    if after == before:
        stdout.print("Nothing was changed, so nothing was done.")
        raise typer.Exit
    return after


def _accepted(connection: Connection, letter_id: str, value: dict[str, Any], doing: Doing, *, again: bool) -> bool:
    """Hand the event in; False if it breaks a rule and whoever is at the terminal wants to edit it once more."""

    async def hand_in(client: GatewayClient) -> None:
        body = {"value": value, "reason": doing.reason, "run": doing.run}
        try:
            await post(client, doing.service, "dead-letters", letter_id, "edit", body=body)
        except Refused as refused:
            if refused.status not in {400, 422}:
                raise
            problems.append(refused)

    problems: list[Refused] = []
    ask_ops(connection, doing.service, hand_in)
    if not problems:
        return True
    tell_refusal(problems[0], doing.service)
    if again and sys.stdin.isatty() and typer.confirm("Edit it again?", default=True, err=True):
        return False
    stderr.print("It was not changed.")
    raise typer.Exit(1)


def _see_redriven(connection: Connection, doing: Doing, *, wait: bool, as_json: bool) -> None:
    async def work(client: GatewayClient) -> None:
        if wait:
            await settle(client, doing, Pace(1), quiet=as_json)

    run_to_the_end(connection, doing, work, as_json=as_json)


def _read_file(file: str) -> dict[str, Any]:
    try:
        return _parsed(sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes())
    except (OSError, ValueError) as error:
        stderr.print(f"{plain(file)}: {plain(error.strerror if isinstance(error, OSError) else error)}", style="red")
        raise typer.Exit(2) from None


def _edited(text: str) -> dict[str, Any]:
    """The event after the editor had it, in a file that nobody else can read and that is removed afterwards."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="carebus-") as folder:
        path = Path(folder) / "event.json"
        path.touch(mode=0o600)
        path.write_text(text)
        while True:
            try:
                code = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode  # noqa: S603
            except OSError as error:
                stderr.print(f"{plain(editor)}: {error.strerror}; set EDITOR, or use --file.", style="red")
                raise typer.Exit(1) from None
            if code != 0:
                stderr.print(f"{plain(editor)} ended with {code}: nothing was done.", style="red")
                raise typer.Exit(1)
            try:
                return _parsed(path.read_bytes())
            except ValueError as error:
                stderr.print(plain(error), style="red")
                if not sys.stdin.isatty() or not typer.confirm("Edit it again?", default=True, err=True):
                    raise typer.Exit(1) from None


def _parsed(text: bytes) -> dict[str, Any]:
    """Raises ValueError, which says where and nothing of the text."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"this is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("an event is a JSON object")  # noqa: TRY004
    return value


def _indented(value: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode() + "\n"
