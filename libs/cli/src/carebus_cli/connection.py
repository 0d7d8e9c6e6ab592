"""Which gateway to talk to, and with which token: from the options, the environment, or a running `carebus up`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from carebus_cli.client import ApiError, GatewayClient, Refused
from carebus_cli.meter import plain, stderr
from carebus_cli.retry import RetryPolicy
from carebus_local import keys, state

__all__ = [
    "DEFAULT_ORG",
    "DEFAULT_STATE_DIR",
    "Connection",
    "JsonOption",
    "NoConnection",
    "OrgOption",
    "StateDirOption",
    "TokenOption",
    "UrlOption",
    "connect",
    "connect_or_exit",
    "run_with_client",
    "tell_error",
]

T = TypeVar("T")

UrlOption = Annotated[
    str | None, typer.Option("--url", envvar="CAREBUS_URL", help="The gateway; else that of a running `carebus up`.")
]
TokenOption = Annotated[
    str | None, typer.Option("--token", envvar="CAREBUS_TOKEN", help="A token; else one made with the development key.")
]
OrgOption = Annotated[str, typer.Option("--org", help="The organization of a token made with the development key.")]
StateDirOption = Annotated[
    Path, typer.Option("--state-dir", envvar="CAREBUS_STATE_DIR", help="Where `carebus up` keeps its state.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_STATE_DIR: Final = Path(".carebus")
DEFAULT_ORG: Final = "demo"
# One who may send, and read all of the organization.
_ROLES: Final = ("event-sender", "admin")


class NoConnection(Exception):
    """There is no gateway or no token to use; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A gateway's URL and a bearer token for it."""

    url: str
    token: str

    def client(self, policy: RetryPolicy | None = None) -> GatewayClient:
        return GatewayClient(self.url, self.token, policy=policy)


def connect(url: str | None, token: str | None, state_dir: Path, org: str, roles: Sequence[str] = _ROLES) -> Connection:
    """What the options (or the environment behind them) say, else what `carebus up` on `state_dir` has.

    A token that is made is of `org` and has `roles`. Raises NoConnection.
    """
    if url is None:
        running = state.read(state_dir)
        if running is None or not running.supervisor.alive() or "gateway" not in running.urls:
            raise NoConnection(f"Nothing runs on {state_dir}: start it with `carebus up`, or give --url and --token.")
        url = running.urls["gateway"]
    if token is None:
        try:
            token = keys.mint(state_dir, org, roles)
        except FileNotFoundError:
            raise NoConnection(f"{state_dir} has no development key to make a token with: give --token.") from None
        except ValueError as error:
            raise NoConnection(str(error)) from None
    return Connection(url, token)


def run_with_client(
    connection: Connection,
    work: Callable[[GatewayClient], Coroutine[Any, Any, T]],
    policy: RetryPolicy | None = None,
) -> T:
    """Run `work` with a client, in an event loop of its own."""

    async def main() -> T:
        async with connection.client(policy) as client:
            return await work(client)

    return asyncio.run(main())


def connect_or_exit(
    url: str | None, token: str | None, state_dir: Path, org: str, roles: Sequence[str] = _ROLES
) -> Connection:
    """As `connect`, but tells on stderr why there is none and ends the command with exit code 2."""
    try:
        return connect(url, token, state_dir, org, roles)
    except NoConnection as error:
        stderr.print(plain(error))
        raise typer.Exit(2) from None


def tell_error(error: ApiError) -> None:
    """What went wrong, with the offending fields and the request id to quote, on stderr."""
    stderr.print(plain(error), style="red")
    if isinstance(error, Refused):
        for detail in error.details:
            if isinstance(detail, dict):
                stderr.print(f"  {plain(detail.get('path', ''))}: {plain(detail.get('rule', ''))}")
        if error.request_id:
            stderr.print(f"  request {plain(error.request_id)}")
