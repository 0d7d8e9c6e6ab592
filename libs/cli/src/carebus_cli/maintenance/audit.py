"""`carebus audit`: whether the audit of claims is whole, and moving old entries to files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from carebus_cli.client import ApiError
from carebus_cli.connection import (
    DEFAULT_ORG,
    DEFAULT_STATE_DIR,
    JsonOption,
    StateDirOption,
    TokenOption,
    UrlOption,
    connect_or_exit,
    run_with_client,
    tell_error,
)
from carebus_cli.dlq.times import parse_time
from carebus_cli.maintenance.parts import AuditKeyFileOption, OrganizationOption, StoreOption, audit_key, part
from carebus_cli.meter import Meter, plain, stderr, stdout
from carebus_cli.tables import print_json_line

__all__ = ["app", "run_with_store"]

T = TypeVar("T")
_SHOWN: Final = 10

app = typer.Typer(no_args_is_help=True, help="Whether the audit of claims is whole, and moving old entries to files.")

AnchorOption = Annotated[
    str | None,
    typer.Option("--anchor", metavar="SEQ:HASH", help="What an earlier verification told; it must still be there."),
]


@app.command("verify")
def verify(
    *,
    organization: Annotated[
        str | None,
        typer.Option("--organization", help="Only this one; else the token's, and with --direct all that there are."),
    ] = None,
    anchor: AnchorOption = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="Read the store itself, past the service; takes the audit's key.")
    ] = False,
    archive: Annotated[
        Path | None,
        typer.Option("--archive", help="Verify these files too, as one chain with the store."),
    ] = None,
    store: StoreOption = None,
    audit_key_file: AuditKeyFileOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Check every entry of the audit: edited, deleted, swapped, inserted or cut off, each shows with its number.

    Exit code 0 only if all is whole. What no chain shows by itself is that all of it was put back to an earlier state:
    keep what is printed as the anchor somewhere else, and give it with --anchor the next time.
    """
    if anchor is not None and direct and organization is None:
        raise typer.BadParameter("an anchor is one organization's: give --organization", param_hint="--anchor")
    if archive is not None and not direct:
        raise typer.BadParameter("files are verified with --direct", param_hint="--archive")
    if direct:
        verdicts = _verify_directly(
            part("store", store, state_dir),
            audit_key(audit_key_file, state_dir),
            organization,
            anchor=anchor,
            archive=archive,
            quiet=as_json,
        )
    else:
        connection = connect_or_exit(url, token, state_dir, organization or DEFAULT_ORG, ("admin",))
        params = {"anchor": anchor} if anchor else None
        try:
            answer = run_with_client(
                connection, lambda client: client.ask("GET", "/claims/audit/verify", params=params)
            )
        except ApiError as error:
            tell_error(error)
            raise typer.Exit(2) from None
        verdicts = [answer["data"]]
    _tell(verdicts, as_json=as_json)
    if not all(verdict["whole"] for verdict in verdicts):
        raise typer.Exit(1)


@app.command("archive")
def archive_entries(
    *,
    before: Annotated[str, typer.Option("--before", help="Move those from before then: a date, 90d, or RFC 3339.")],
    to: Annotated[Path, typer.Option("--to", help="The archive's directory; always the same one.")],
    organization: OrganizationOption = None,
    store: StoreOption = None,
    audit_key_file: AuditKeyFileOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Move old entries to files that verify together with what remains.

    Each file is on the disk, with its manifest, before an entry is deleted. One that was interrupted goes on when it is
    run again. Stops at the first entry that is no whole chain's.
    """
    try:
        time = parse_time(before, datetime.now(UTC))
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(str(error), param_hint="--before") from None
    store_url, key = part("store", store, state_dir), audit_key(audit_key_file, state_dir)
    from carebus_claims.archive import BrokenChain  # noqa: PLC0415
    from carebus_claims.audit_trail import ArchiveAhead  # noqa: PLC0415
    from carebus_cli.maintenance.trail import archive_all  # noqa: PLC0415

    try:
        with Meter("entries archived", quiet=as_json) as meter:
            done = run_with_store(archive_all(store_url, key, organization, to, before=time, on_entries=meter.set))
    except (BrokenChain, ArchiveAhead, OSError) as error:
        stderr.print(plain(error), style="red")
        raise typer.Exit(1) from None
    for name, archived in done:
        files = [one.file for one in archived.manifests]
        if as_json:
            print_json_line({"organizationId": name, "moved": archived.deleted, "files": files})
        elif archived.deleted:
            stdout.print(f"{plain(name)}: {archived.deleted:,} entries moved to {plain(to / name)}")
    if not as_json and not any(archived.deleted for _, archived in done):
        stdout.print("nothing to move")


def run_with_store(work: Coroutine[Any, Any, T]) -> T:
    """Run it; ends the command with 2 if the store cannot be used."""
    from pymongo.errors import PyMongoError  # noqa: PLC0415

    try:
        return asyncio.run(work)
    except PyMongoError as error:
        stderr.print(f"The store cannot be used: {type(error).__name__}", style="red")
        raise typer.Exit(2) from None


def _verify_directly(
    store_url: str, key: bytes, organization: str | None, *, anchor: str | None, archive: Path | None, quiet: bool
) -> list[dict[str, Any]]:
    from carebus_claims.audit_routes import parse_anchor  # noqa: PLC0415
    from carebus_cli.maintenance.trail import verify_all  # noqa: PLC0415

    try:
        link = parse_anchor(anchor) if anchor else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--anchor") from None
    with Meter("entries verified", quiet=quiet) as meter:
        return run_with_store(
            verify_all(store_url, key, organization, anchor=link, archive=archive, on_entries=meter.set)
        )


def _tell(verdicts: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    for verdict in verdicts:
        if as_json:
            print_json_line(verdict)
            continue
        name, at = plain(verdict["organizationId"]), verdict["at"]
        state = "whole" if verdict["whole"] else "BROKEN"
        archived = f", {verdict['archived']:,} archived before" if verdict["archived"] else ""
        stdout.print(f"{name}: {state}, {verdict['entries']:,} entries{archived}, anchor {at['seq']}:{at['hash']}")
        _tell_faults(verdict["faults"], verdict["moreFaults"], lambda fault: f"entry {fault['seq']}: {fault['kind']}")
        if files := verdict.get("archive"):
            stdout.print(f"  {files['entries']:,} entries in files")
            _tell_faults(files["faults"], 0, _tell_file)
    if not verdicts and not as_json:
        stdout.print("there are no entries")


def _tell_file(fault: dict[str, Any]) -> str:
    return f"file {fault['file'] or '(the last)'}, entry {fault['seq'] or '(none)'}: {fault['kind']}"


def _tell_faults(faults: Sequence[dict[str, Any]], more: int, tell: Callable[[dict[str, Any]], str]) -> None:
    for fault in faults[:_SHOWN]:
        stderr.print(f"  {plain(tell(fault))}", style="red")
    if left := max(0, len(faults) - _SHOWN) + more:
        stderr.print(f"  and {left:,} more", style="red")
