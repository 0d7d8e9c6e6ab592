"""`carebus token`: an access token made with the development key."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from carebus_cli.connection import DEFAULT_STATE_DIR, StateDirOption
from carebus_local.keys import ensure_key, mint

__all__ = ["token"]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def token(
    *,
    org: Annotated[str, typer.Option("--org", help="The organization the caller belongs to.")],
    role: Annotated[list[str], typer.Option("--role", help="A role; give it several times for several.")],
    subject: Annotated[str, typer.Option(help="Who calls.")] = "developer",
    patient: Annotated[str | None, typer.Option(help="The patient a caller with the role patient is.")] = None,
    ttl: Annotated[str, typer.Option(help="How long it is good for: a number with s, m, h or d.")] = "12h",
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the time of expiry.")] = False,
) -> None:
    """Print an access token that the services of the state directory accept. Makes the key if there is none."""
    good_for = _parse_ttl(ttl)
    ensure_key(state_dir)
    try:
        made = mint(state_dir, org, role, subject=subject, patient_id=patient, ttl=good_for)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        expires_at = (datetime.now(UTC) + good_for).isoformat(timespec="seconds")
        made = json.dumps({"token": made, "expiresAt": expires_at})
    typer.echo(made)


def _parse_ttl(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if match is None:
        raise typer.BadParameter("a number with s, m, h or d, such as 15m", param_hint="--ttl")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
