"""`carebus send`: events from a file or standard input to the gateway."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from carebus_cli.client import ApiError, GatewayClient, Refused
from carebus_cli.connection import (
    DEFAULT_ORG,
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
from carebus_cli.event_file import NotEvents, parse_events
from carebus_cli.meter import Meter, plain, stderr, stdout, while_telling
from carebus_cli.sender import GaveUp, Outgoing, Rejection, Sending, send_in_order

__all__ = ["send"]

_SHOWN: Final = 20


def send(
    file: Annotated[str, typer.Argument(help="A file with events, or - for standard input.")],
    *,
    url: UrlOption = None,
    token: TokenOption = None,
    org: OrgOption = DEFAULT_ORG,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Send events: a JSON object, an array, or NDJSON.

    Each patient's events are accepted in the order of the file. Exit code 0 only if every event was accepted.
    """
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        events = parse_events(text)
    except (OSError, NotEvents) as error:
        stderr.print(f"{plain(file)}: {plain(error.strerror if isinstance(error, OSError) else error)}")
        raise typer.Exit(2) from None
    connection = connect_or_exit(url, token, state_dir, org)
    sending = Sending()

    async def work(client: GatewayClient) -> None:
        if len(events) == 1:
            await _send_one(client, events[0], sending)
            return
        with Meter("sending", len(events), quiet=as_json) as meter:
            sent = send_in_order(client, events, sending, keep_receipts=True)
            await while_telling(sent, lambda: meter.set(sending.done))

    why: str | None = None
    try:
        run_with_client(connection, work)
    except KeyboardInterrupt:
        why = "Interrupted."
    except GaveUp as error:
        why = str(error)
    except ApiError as error:
        tell_error(error)
        why = "Stopped."
    _show(sending, events, why, as_json=as_json)
    if why or sending.rejected:
        raise typer.Exit(130 if why == "Interrupted." else 1)


async def _send_one(client: GatewayClient, event: Outgoing, sending: Sending) -> None:
    try:
        sending.receipts[event.place] = await client.send(event.body)
        sending.accepted[event.type] += 1
    except Refused as refused:
        if refused.status not in {400, 413, 422}:
            raise
        sending.rejected.append(Rejection(event.place, refused.code, refused.message, refused.details))


def _show(sending: Sending, events: list[Outgoing], why: str | None, *, as_json: bool) -> None:
    if as_json:
        rejected = {rejection.place: rejection for rejection in sending.rejected}
        results = [_result(event.place, sending, rejected.get(event.place)) for event in events]
        answer = {"accepted": sending.accepted.total(), "rejected": len(rejected), "results": results}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(answer)).decode() + "\n")
    else:
        for receipt in list(sending.receipts.values())[:1] if len(events) == 1 else []:
            stdout.print(f"accepted {receipt.event_id} (partition {receipt.partition}, offset {receipt.offset})")
            stdout.print(f"status   {receipt.status_url}")
        _print_rejections(sending.rejected)
        if len(events) != 1:
            stdout.print(f"{sending.accepted.total():,} accepted, {len(sending.rejected):,} rejected")
    if why:
        left = len(events) - sending.done
        stderr.print(f"{why} {left:,} of {len(events):,} events got no answer.")


def _result(place: int, sending: Sending, rejection: Rejection | None) -> dict[str, Any]:
    receipt = sending.receipts.get(place)
    if receipt is not None:
        return {
            "index": place,
            "status": "accepted",
            "eventId": receipt.event_id,
            "partition": receipt.partition,
            "offset": receipt.offset,
            "statusUrl": receipt.status_url,
        }
    if rejection is not None:
        error = {"code": rejection.code, "message": rejection.message, "details": rejection.details}
        return {"index": place, "status": "rejected", "error": error}
    return {"index": place, "status": "unanswered"}


def _print_rejections(rejected: list[Rejection]) -> None:
    """The first rejections: the event's number, the error, and each offending field."""
    for rejection in sorted(rejected, key=lambda rejection: rejection.place)[:_SHOWN]:
        stderr.print(f"event {rejection.place + 1}: {plain(rejection.code)}: {plain(rejection.message)}", style="red")
        for detail in rejection.details:
            if isinstance(detail, dict):
                stderr.print(f"  {plain(detail.get('path', ''))}: {plain(detail.get('rule', ''))}")
    if len(rejected) > _SHOWN:
        stderr.print(f"and {len(rejected) - _SHOWN:,} more")
