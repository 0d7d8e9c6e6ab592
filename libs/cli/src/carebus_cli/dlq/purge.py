"""`carebus dlq purge`: deleting what is settled, by two operators."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from carebus_cli.client import GatewayClient
from carebus_cli.connection import DEFAULT_STATE_DIR, JsonOption, StateDirOption, TokenOption, UrlOption
from carebus_cli.dlq.options import ReasonOption, check_reason, time_option
from carebus_cli.dlq.render import print_purges, say
from carebus_cli.meter import Meter, plain, stdout
from carebus_cli.ops import ServiceOption, ask_ops, connect_operator, get, post
from carebus_cli.tables import print_json, print_json_line

__all__ = ["purge"]


def purge(
    *,
    before: Annotated[
        str | None, typer.Option("--before", help="Ask to delete those from before then: a date, 90d, or RFC 3339.")
    ] = None,
    approve: Annotated[str | None, typer.Option("--approve", metavar="ID", help="Approve what another asked.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show what was asked and approved.")] = False,
    reason: ReasonOption = None,
    service: ServiceOption = "processor",
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Delete redriven and discarded dead letters: one operator asks with --before, another one approves.

    Open ones, and those still being tried again, stay.
    """
    if sum((before is not None, approve is not None, listing)) != 1:
        raise typer.BadParameter("one of --before, --approve and --list", param_hint="purge")
    time = time_option("--before", before)
    why = check_reason(reason, "--before") if time is not None else reason
    connection = connect_operator(url, token, state_dir)
    if listing:
        purges = ask_ops(connection, service, lambda client: get(client, service, "purges"))
        if as_json:
            for one in purges:
                print_json_line(one)
        elif purges:
            print_purges(purges)
        else:
            stdout.print(f"Nobody has asked to purge anything of {service}.")
        return

    async def ask(client: GatewayClient) -> Any:
        return await post(client, service, "purges", body={"before": time, "reason": why})

    async def delete(client: GatewayClient) -> Any:
        body = {} if why is None else {"reason": why}
        with Meter("deleting", quiet=as_json) as meter:
            # An answer comes before all is deleted if that takes long; approving again goes on.
            while (one := await post(client, service, "purges", approve or "", "approve", body=body))[
                "status"
            ] == "approved":
                meter.set(one["deleted"])
        return one

    one = ask_ops(connection, service, ask if approve is None else delete)
    if as_json:
        print_json(one)
    elif approve is None:
        again = f"carebus dlq purge --approve {plain(one['id'])} --service {service}"
        stdout.print(f"Asked for as {plain(one['id'])}; nothing is deleted yet. Another operator runs: {again}")
    else:
        stdout.print(f"{say(one['deleted'], 'dead letter', 'dead letters')} deleted")
