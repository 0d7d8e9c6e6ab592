"""`carebus dlq`: reading dead letters. What is done about them is in `acting`."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import typer

from carebus_cli.client import ApiError, GatewayClient
from carebus_cli.connection import (
    DEFAULT_STATE_DIR,
    JsonOption,
    StateDirOption,
    TokenOption,
    UrlOption,
    run_with_client,
)
from carebus_cli.dlq import acting
from carebus_cli.dlq.options import (
    FingerprintOption,
    OrganizationOption,
    PatientOption,
    ReasonOption,
    RevealOption,
    SinceOption,
    StatusOption,
    TypeOption,
    UntilOption,
    check_reason,
    filters,
    is_patient_id,
)
from carebus_cli.dlq.render import letter_line, print_letter, print_letters, print_summary, say
from carebus_cli.dlq.watch import new_letters
from carebus_cli.meter import Meter, plain, stderr, stdout
from carebus_cli.ops import Service, ServiceOption, ask_ops, connect_operator, get, get_page, pages, post, tell_refusal
from carebus_cli.tables import print_json, print_json_line

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Dead letters: what failed, and what becomes of it.")


@app.command("summary")
def summary(
    *,
    organization: OrganizationOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    service: ServiceOption = "processor",
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """One line per cause of failure: how many, how many patients, since when. With --json one line each."""
    params = filters(organization=organization, since=since, until=until)
    connection = connect_operator(url, token, state_dir)
    groups = ask_ops(connection, service, lambda client: get(client, service, "dead-letters", "summary", params=params))
    if as_json:
        for group in groups:
            print_json_line(group)
    elif groups:
        print_summary(groups)
    else:
        stdout.print(f"{service} has no dead letters.")


@app.command("list")
def list_letters(
    *,
    fingerprint: FingerprintOption = None,
    event_type: TypeOption = None,
    organization: OrganizationOption = None,
    patient: PatientOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    status: StatusOption = "open",
    limit: Annotated[int, typer.Option(min=1, max=200, help="Dead letters a page.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="All pages.")] = False,
    service: ServiceOption = "processor",
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Dead letters, the newest first, masked. With --json one line each."""
    params = filters(
        fingerprint=fingerprint,
        event_type=event_type,
        organization=organization,
        patient=patient,
        since=since,
        until=until,
    )
    params["status"] = status

    async def work(client: GatewayClient) -> tuple[list[dict[str, Any]], bool]:
        if everything:
            found = pages(client, service, "dead-letters", params=params)
            return [letter async for page in found for letter in page], False
        letters, cursor = await get_page(client, service, "dead-letters", params={**params, "limit": str(limit)})
        return letters, cursor is not None

    letters, more = ask_ops(connect_operator(url, token, state_dir, phi=is_patient_id(patient)), service, work)
    if as_json:
        for letter in letters:
            print_json_line(letter)
    elif letters:
        print_letters(letters)
    else:
        stdout.print(f"{service} has none that match.")
    if more:
        stderr.print("There are more: --all shows them.")


@app.command("show")
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="The dead letter.")],
    *,
    reveal: RevealOption = False,
    reason: ReasonOption = None,
    service: ServiceOption = "processor",
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Everything about one dead letter: causes, attempts, what was done about it. The payload is masked."""
    why = check_reason(reason, "--reveal") if reveal else ""

    async def work(client: GatewayClient) -> dict[str, Any]:
        letter: dict[str, Any] = await get(client, service, "dead-letters", letter_id)
        return await _revealed(client, service, letter, why) if reveal else letter

    letter = ask_ops(connect_operator(url, token, state_dir, phi=reveal), service, work)
    if as_json:
        print_json(letter)
    else:
        print_letter(letter, revealed=reveal)


@app.command("watch")
def watch(
    *,
    fingerprint: FingerprintOption = None,
    event_type: TypeOption = None,
    organization: OrganizationOption = None,
    patient: PatientOption = None,
    since: SinceOption = None,
    service: ServiceOption = "processor",
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """New dead letters as they come, until Ctrl-C; with --since those since then first."""
    params = filters(
        fingerprint=fingerprint, event_type=event_type, organization=organization, patient=patient, since=since
    )
    connection = connect_operator(url, token, state_dir, phi=is_patient_id(patient))

    async def work(client: GatewayClient) -> None:
        async for letter in new_letters(client, service, params):
            if as_json:
                print_json_line(letter)
            else:
                stdout.print(letter_line(letter))
            sys.stdout.flush()

    try:
        ask_ops(connection, service, work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command("export")
def export(
    *,
    fingerprint: FingerprintOption = None,
    event_type: TypeOption = None,
    organization: OrganizationOption = None,
    patient: PatientOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    status: StatusOption = "all",
    out: Annotated[Path | None, typer.Option("--out", help="A file instead of standard output.")] = None,
    reveal: RevealOption = False,
    reason: ReasonOption = None,
    service: ServiceOption = "processor",
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Dead letters as NDJSON, the newest first: what `list` has of each, with --reveal also what is in the event.

    A file is there only when it is complete, and only its owner can read it.
    """
    why = check_reason(reason, "--reveal") if reveal else ""
    params = filters(
        fingerprint=fingerprint,
        event_type=event_type,
        organization=organization,
        patient=patient,
        since=since,
        until=until,
    )
    params["status"] = status
    connection = connect_operator(url, token, state_dir, phi=reveal or is_patient_id(patient))
    written = 0

    async def letters(client: GatewayClient) -> AsyncIterator[list[dict[str, Any]]]:
        async for page in pages(client, service, "dead-letters", params=params):
            yield [await _revealed(client, service, letter, why) for letter in page] if reveal else page

    async def work(client: GatewayClient, file: IO[bytes]) -> None:
        nonlocal written
        with Meter("exporting", quiet=out is None) as meter:
            async for page in letters(client):
                file.write(b"".join(msgspec.json.encode(letter) + b"\n" for letter in page))
                file.flush()
                written += len(page)
                meter.set(written)

    try:
        if out is None:
            run_with_client(connection, lambda client: work(client, sys.stdout.buffer))
            return
        scratch = out.with_name(f".{out.name}.{os.getpid()}")
        try:
            with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                run_with_client(connection, lambda client: work(client, file))
            scratch.replace(out)
        finally:
            scratch.unlink(missing_ok=True)
    except ApiError as error:
        tell_refusal(error, service)
        left = "" if out is None else f" {plain(out)} was not written."
        stderr.print(f"Stopped after {say(written, 'dead letter', 'dead letters')}.{left} Run it again.")
        raise typer.Exit(1) from None
    except BrokenPipeError:  # Whoever reads has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except OSError as error:
        stderr.print(f"{plain(out)}: {error.strerror}", style="red")
        raise typer.Exit(1) from None
    stdout.print(f"{say(written, 'dead letter', 'dead letters')} in {plain(out)}")


async def _revealed(client: GatewayClient, service: Service, letter: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """The dead letter with what is in its event."""
    shown = await post(client, service, "dead-letters", letter["id"], "reveal", body={"reason": reason})
    return {**letter, **shown}


acting.register(app)
