"""`carebus topics tail`: a topic's newest records, masked."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
import typer

from carebus_cli.client import ApiError, GatewayClient
from carebus_cli.connection import DEFAULT_STATE_DIR, JsonOption, StateDirOption, TokenOption, UrlOption
from carebus_cli.dlq.render import class_name
from carebus_cli.dlq.times import rfc3339
from carebus_cli.meter import plain, stderr, stdout
from carebus_cli.ops import PAGE, Service, ask_ops, connect_operator, get_page, is_away
from carebus_cli.tables import print_json_line

__all__ = ["records", "tail"]

_POLL: Final = 1.0


def tail(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="A topic that the service reads or writes.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=PAGE, help="How many to begin with.")] = 20,
    service: Annotated[
        Service | None, typer.Option("--service", help="Who is asked; else claims for its topics and the processor.")
    ] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """The newest records of a topic, the newest last, masked. With --json one line each."""
    asked: Service = service or ("claims" if topic.startswith("claims.") else "processor")
    connection = connect_operator(url, token, state_dir)

    async def work(client: GatewayClient) -> None:
        async for record in records(client, asked, topic, lines=lines, follow=follow):
            if as_json:
                print_json_line(record)
            else:
                stdout.print(_line(record))
            sys.stdout.flush()

    try:
        ask_ops(connection, asked, work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def records(
    client: GatewayClient,
    service: Service,
    topic: str,
    *,
    lines: int,
    follow: bool,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[Mapping[str, Any]]:
    """The newest `lines` records, and with `follow` those that come after them, without end.

    What is away later on is told once and waited for. Raises Refused, Unreachable.
    """
    found, cursor = await get_page(client, service, "topics", topic, "tail", params={"limit": str(lines)})
    away = False
    while True:
        for record in found:
            yield record
        if not follow or cursor is None:
            return
        if len(found) < PAGE:
            await sleep(_POLL)
        try:
            found, cursor = await get_page(
                client, service, "topics", topic, "tail", params={"limit": str(PAGE), "cursor": cursor}
            )
            away = False
        except ApiError as error:
            if not is_away(error):
                raise
            if not away:
                stderr.print(f"{plain(error)}; still following")
            found, away = [], True


def _line(record: Mapping[str, Any]) -> str:
    at = rfc3339(datetime.fromtimestamp(record["timestamp"] / 1000, UTC))
    dlq = record["dlq"]
    words = (
        at,
        f"{record['partition']}/{record['offset']}",
        record["type"],
        record["organizationId"],
        record["patient"],
        record["eventId"],
        dlq and " ".join(filter(None, (dlq.get("id"), dlq.get("reason"), class_name(dlq.get("error-class") or "")))),
        msgspec.json.encode(record["payload"]).decode(),
    )
    return "  ".join(plain(word) for word in words if word)
