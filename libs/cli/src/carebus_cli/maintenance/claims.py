"""`carebus claims rebuild`: the read models of claims, compared with the topics they come from, and replaced."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carebus_cli.connection import DEFAULT_STATE_DIR, JsonOption, StateDirOption
from carebus_cli.maintenance.audit import run_with_store
from carebus_cli.maintenance.parts import KafkaOption, OrganizationOption, StoreOption, part
from carebus_cli.meter import Meter, plain, stderr, stdout
from carebus_cli.tables import print_json_line

if TYPE_CHECKING:
    from carebus_cli.maintenance.rebuilding import Rebuilt

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The read models of claims.")


@app.callback()
def _claims() -> None:
    """Keeps `rebuild` a command of its own although it is the only one."""


@app.command("rebuild")
def rebuild(
    *,
    organization: OrganizationOption = None,
    swap: Annotated[bool, typer.Option("--swap", help="Replace what differs; without, it is only told.")] = False,
    store: StoreOption = None,
    kafka: KafkaOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Build claims, their figures and patients' histories anew from the topics, beside the ones that serve.

    Each organization's are compared by a hash of their content; with --swap what differs is replaced, in transactions
    that writers and the consumer need not stop for. What the topics do not reach back to is left as it is, and counted.
    Exit code 0 only if what serves is what the topics say.
    """
    store_url, bootstrap = part("store", store, state_dir), part("kafka", kafka, state_dir)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    from aiokafka.errors import KafkaError  # noqa: PLC0415

    from carebus_cli.maintenance.rebuilding import rebuild_all  # noqa: PLC0415

    try:
        with Meter("records read", quiet=as_json) as meter:
            read: dict[str, int] = {}

            def on_progress(what: str, count: int) -> None:
                read[what] = count
                meter.set(sum(read.values()))

            done = run_with_store(rebuild_all(store_url, bootstrap, organization, swap=swap, on_progress=on_progress))
    except (KafkaError, LookupError, OSError) as error:
        stderr.print(f"The topics cannot be read: {plain(error) or type(error).__name__}", style="red")
        raise typer.Exit(2) from None
    for one in done:
        if as_json:
            print_json_line(one.as_json())
        else:
            _tell(one)
    if not all(one.good for one in done):
        if not as_json and not swap:
            stderr.print("Nothing was replaced: add --swap.")
        raise typer.Exit(1)


def _tell(one: Rebuilt) -> None:
    held = one.as_json()
    claims, histories = held["claims"], held["histories"]
    state = "replaced" if one.swapped and one.mended else "same" if one.good else "DIFFERENT"
    stdout.print(
        f"{plain(one.organization_id)}: {state}, {claims['rows']:,} claims, "
        f"{histories['events']['rows']:,} events of {histories['patients']['rows']:,} patients"
    )
    for name, part_ in (("claims", claims), ("events", histories["events"]), ("patients", histories["patients"])):
        _tell_difference(name, part_)
    if claims["figures"]:
        stdout.print(f"  figures: {len(claims['figures']):,} numbers were not those of the claims")
    if one.mended:
        stdout.print(f"  {one.mended:,} documents replaced")
    if beyond := claims["beyondRetention"] + histories["beyondRetention"]:
        stdout.print(f"  {beyond:,} are older than what the topics retain, and were left alone")
    if histories["parked"]:
        stdout.print(f"  {histories['parked']:,} parked patients were left alone")
    if claims["lagging"]:
        stderr.print("  the changes up to the newest are not published yet: is the claims service up?", style="red")
    if claims["noHead"] and claims["rows"]:
        stderr.print("  there is no head: `carebus audit verify` says what is missing", style="red")
    if histories["pending"]:
        stderr.print(f"  {histories['pending']:,} patients changed whenever they were looked at", style="red")


def _tell_difference(name: str, part_: Mapping[str, Any]) -> None:
    counts = {word: part_[word] for word in ("missing", "different", "surplus")}
    if any(counts.values()):
        told = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
        stdout.print(f"  {name}: {told}; content {part_['hash'][:12]}, should be {part_['expectedHash'][:12]}")
