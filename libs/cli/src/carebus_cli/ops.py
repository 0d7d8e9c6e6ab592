"""The operations API of a consuming service, through the gateway: plain functions over a client."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args
from urllib.parse import quote

import typer

from carebus_cli.client import ApiError, GatewayClient, Refused
from carebus_cli.connection import Connection, connect_or_exit, run_with_client, tell_error
from carebus_cli.meter import stderr
from carebus_cli.retry import RetryPolicy

__all__ = [
    "IMPATIENT",
    "PAGE",
    "SERVICES",
    "Service",
    "ServiceOption",
    "ask_ops",
    "connect_operator",
    "get",
    "get_page",
    "is_away",
    "pages",
    "post",
    "tell_refusal",
]

T = TypeVar("T")
Service = Literal["processor", "claims"]

SERVICES: Final[tuple[Service, ...]] = get_args(Service)
# The most entries a page of a list may have.
PAGE: Final = 200

ServiceOption = Annotated[Service, typer.Option("--service", help="The service whose dead letters are meant.")]

# Whoever looks here wants to know now: what is away for longer is told, not waited for.
IMPATIENT: Final = RetryPolicy(give_up_after=timedelta(seconds=3))

_AWAY: Final = frozenset({502, 503, 504})
_TO_DO: Final = {
    401: "The token is not accepted: give another with --token.",
    403: "It takes a token with the role operator, or operator-phi to reveal, to edit or to search by patient id;"
    " consumers, purges and topics also take one of the operations organization.",
    404: "{service} has nothing by that name that this token may see; --service says which service is asked.",
    502: "{service} gave no proper answer: `carebus status` shows its health, `carebus logs {service}` the cause.",
    503: "{service} or its store is away: `carebus status` shows which. What was not answered was not done.",
    504: "{service} did not answer in time: `carebus status` shows its health. Running the command again is safe.",
}


async def get(client: GatewayClient, service: Service, *segments: str, params: Mapping[str, str] | None = None) -> Any:
    """The `data` of an answer. Raises Refused, Unreachable, as all here."""
    return (await client.ask("GET", _path(service, segments), params=params))["data"]


async def get_page(
    client: GatewayClient, service: Service, *segments: str, params: Mapping[str, str] | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """One page of a list, and the cursor of the next."""
    answer = await client.ask("GET", _path(service, segments), params=params)
    return answer["data"], (answer.get("page") or {}).get("next")


async def pages(
    client: GatewayClient, service: Service, *segments: str, params: Mapping[str, str]
) -> AsyncIterator[list[dict[str, Any]]]:
    """All pages of a list, one after the other."""
    query = {**params, "limit": str(PAGE)}
    while True:
        items, cursor = await get_page(client, service, *segments, params=query)
        yield items
        if cursor is None:
            return
        query["cursor"] = cursor


async def post(client: GatewayClient, service: Service, *segments: str, body: Mapping[str, Any]) -> Any:
    """The `data` of the answer to `body`."""
    return (await client.ask("POST", _path(service, segments), body=body))["data"]


def connect_operator(url: str | None, token: str | None, state_dir: Path, *, phi: bool = False) -> Connection:
    """A connection as an operator who sees all organizations; with `phi` as one who may also see payloads.

    Both is so of a token that is made with the development key; one that is given is what it is. Ends the command
    if there is no connection.
    """
    organization = os.environ.get("CAREBUS_OPERATIONS_ORGANIZATION", "carebus")
    roles = ("operator", "operator-phi") if phi else ("operator",)
    return connect_or_exit(url, token, state_dir, organization, roles)


def ask_ops(connection: Connection, service: Service, work: Callable[[GatewayClient], Coroutine[Any, Any, T]]) -> T:
    """Run `work`; if it is refused, tell so and end the command with 1, with 2 if nobody answers."""
    try:
        return run_with_client(connection, work, IMPATIENT)
    except ApiError as error:
        tell_refusal(error, service)
        raise typer.Exit(1 if isinstance(error, Refused) else 2) from None


def tell_refusal(error: ApiError, service: Service) -> None:
    """What went wrong, where, and what to do, on stderr."""
    tell_error(error)
    if not isinstance(error, Refused):
        stderr.print("Is the gateway up? `carebus status` shows it; --url says where it is.")
    elif to_do := _TO_DO.get(error.status):
        stderr.print(to_do.format(service=service))


def is_away(error: ApiError) -> bool:
    """Whether asking again later makes sense: nobody answers, or a part behind the gateway is away."""
    return not isinstance(error, Refused) or error.status in _AWAY


def _path(service: Service, segments: tuple[str, ...]) -> str:
    return "/".join(("/ops", service, *(quote(segment, safe="") for segment in segments)))
