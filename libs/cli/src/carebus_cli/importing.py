"""`carebus import synthea`: a Synthea export through the gateway, and what came of it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from carebus_cli.client import ApiError, GatewayClient
from carebus_cli.connection import (
    DEFAULT_STATE_DIR,
    JsonOption,
    OrgOption,
    StateDirOption,
    TokenOption,
    UrlOption,
    connect_or_exit,
    run_with_client,
    tell_error,
)
from carebus_cli.import_report import ImportReport, show_bad_rows, show_report
from carebus_cli.meter import Meter, plain, stderr, while_telling
from carebus_cli.readback import count_patients, wait_for_counts
from carebus_cli.sender import GaveUp, Outgoing, Sending, send_in_order
from carebus_cli.synthea.plan import Plan, plan
from carebus_cli.synthea.reader import BadRow, MissingFile

__all__ = ["importing"]

importing = typer.Typer(no_args_is_help=True, help="Turn records of other systems into events.")


@dataclass(slots=True)
class _Run:
    """What has happened so far, so that an interrupted import can tell."""

    sending: Sending = field(default_factory=Sending)
    before: Counter[str] = field(default_factory=Counter)
    processed: Counter[str] = field(default_factory=Counter)
    wrong_patients: int = 0
    send_seconds: float = 0.0
    total_seconds: float = 0.0


@importing.callback()
def _importing() -> None:
    """Keeps `synthea` a command of its own although it is the only one."""


@importing.command("synthea")
def import_synthea(
    directory: Annotated[Path, typer.Argument(help="The csv directory of a Synthea export; files may be gzipped.")],
    *,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad row, before anything is sent.")
    ] = False,
    senders: Annotated[int, typer.Option(min=1, max=64, help="Batches in flight.")] = 6,
    stall: Annotated[float, typer.Option(min=1, help="Give up after so many seconds without progress.")] = 60,
    url: UrlOption = None,
    token: TokenOption = None,
    org: OrgOption = "synthea",
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Import a Synthea population: encounters, conditions, observations, procedures, immunizations, medications.

    Rows become events in time order, with ids of their own: importing again makes duplicates only, which change
    nothing. Waits until all are processed and compares what the gateway serves with the CSV. Exit code 0 only if
    every row was accepted and processed exactly once.
    """
    made = _read(directory, strict=strict, quiet=as_json)
    show_bad_rows(made.bad)
    connection = connect_or_exit(url, token, state_dir, org)
    run = _Run()
    why: str | None = None
    try:
        run_with_client(
            connection, lambda client: _import(client, made, run, senders=senders, stall=stall, quiet=as_json)
        )
    except KeyboardInterrupt:
        why = "Interrupted."
    except GaveUp as error:
        why = str(error)
    except ApiError as error:
        tell_error(error)
        why = "Stopped."
    if why:
        accepted, total = run.sending.accepted.total(), len(made.events)
        stderr.print(f"{why} {accepted:,} of {total:,} events were accepted. Running it again is safe: those are")
        stderr.print("recognised as duplicates and change nothing.")
        raise typer.Exit(130 if why == "Interrupted." else 1)
    report = _report(made, run)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report.as_json())).decode() + "\n")
    else:
        show_report(report)
    if not report.complete:
        raise typer.Exit(1)


def _read(directory: Path, *, strict: bool, quiet: bool) -> Plan:
    try:
        with Meter("reading rows", quiet=quiet) as meter:
            return plan(directory, strict=strict, on_row=lambda _: meter.advance())
    except MissingFile as error:
        stderr.print(plain(error))
        raise typer.Exit(2) from None
    except BadRow as error:
        stderr.print(plain(error))
        raise typer.Exit(1) from None


async def _import(client: GatewayClient, made: Plan, run: _Run, *, senders: int, stall: float, quiet: bool) -> None:
    expected = Counter(event.patient_id for event in made.events)
    with Meter("looking for earlier events, patients", len(expected), quiet=quiet) as meter:
        run.before = _by_type(await count_patients(client, expected, on_patient=meter.advance))
    outgoing = (Outgoing(place, event.patient_id, event.type, event.body) for place, event in enumerate(made.events))
    began = time.monotonic()
    with Meter("accepted", len(made.events), quiet=quiet) as meter:
        await while_telling(
            send_in_order(client, outgoing, run.sending, senders=senders), lambda: meter.set(run.sending.done)
        )
    run.send_seconds = time.monotonic() - began

    with Meter("processed", len(made.events), quiet=quiet, began=began) as meter:

        def on_progress(seen: int) -> None:
            run.total_seconds = time.monotonic() - began
            meter.set(seen)

        await wait_for_counts(client, expected, stall_after=stall, on_progress=on_progress)
    with Meter("reading back, patients", len(expected), quiet=quiet) as meter:
        counts = await count_patients(client, expected, on_patient=meter.advance)
    run.processed = _by_type(counts)
    run.wrong_patients = sum(counts[patient_id].total() != count for patient_id, count in expected.items())


def _by_type(counts: dict[str, Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts.values():
        total.update(count)
    return total


def _report(made: Plan, run: _Run) -> ImportReport:
    return ImportReport(
        rows=made.rows,
        expected=made.expected,
        before=run.before,
        accepted=run.sending.accepted,
        processed=run.processed,
        bad_rows=[str(bad) for bad in made.bad],
        rejected=[
            (f"{made.events[rejection.place].file}:{made.events[rejection.place].line}", rejection)
            for rejection in run.sending.rejected
        ],
        patients=len(made.patients),
        wrong_patients=run.wrong_patients,
        send_seconds=run.send_seconds,
        total_seconds=run.total_seconds,
    )
