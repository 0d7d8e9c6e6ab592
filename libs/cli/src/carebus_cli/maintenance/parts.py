"""The store, the broker and the audit's key: from the options, the environment, or a running `carebus up`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carebus_cli.meter import plain, stderr
from carebus_local import state

__all__ = ["AuditKeyFileOption", "KafkaOption", "OrganizationOption", "StoreOption", "audit_key", "part"]

StoreOption = Annotated[
    str | None, typer.Option("--store", envvar="CAREBUS_MONGO_URL", help="The store; else that of a running `up`.")
]
KafkaOption = Annotated[
    str | None,
    typer.Option("--kafka", envvar="CAREBUS_KAFKA_BOOTSTRAP", help="The broker; else that of a running `up`."),
]
AuditKeyFileOption = Annotated[
    Path | None,
    typer.Option("--audit-key-file", help="A file with the audit's key; else CAREBUS_AUDIT_KEY, or `up`'s."),
]
OrganizationOption = Annotated[
    str | None, typer.Option("--organization", help="Only this organization; else all that there are.")
]


def part(name: str, given: str | None, state_dir: Path) -> str:
    """The URL of "store" or "kafka". Ends the command if there is none."""
    if given is not None:
        return given
    running = state.read(state_dir)
    if running is None or not running.supervisor.alive() or name not in running.urls:
        raise _ended(f"Nothing runs on {state_dir}: start it with `carebus up`, or give --{name}.")
    return running.urls[name]


def audit_key(given: Path | None, state_dir: Path) -> bytes:
    """From the file, the environment, what `carebus up` made on `state_dir`, or else what a service takes without one.

    Ends the command if the file cannot be read.
    """
    from carebus_claims.settings import Settings  # noqa: PLC0415

    settings = Settings(jwks="")
    made = state_dir / "keys" / "audit-key"
    path = given if given is not None or settings.audit_key or not made.exists() else made
    if path is None:
        return settings.audit_key_bytes
    try:
        return path.read_text().strip().encode()
    except OSError as error:
        raise _ended(f"The audit's key cannot be read: {path}: {error.strerror}.") from None


def _ended(message: str) -> typer.Exit:
    stderr.print(plain(message))
    return typer.Exit(2)
