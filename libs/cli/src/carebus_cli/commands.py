"""The commands that talk to the gateway, and the demo, for `main` to put together."""

from __future__ import annotations

import typer

from carebus_cli import consumers
from carebus_cli.demo.command import demo
from carebus_cli.dlq import commands as dlq
from carebus_cli.importing import importing
from carebus_cli.maintenance import audit, claims
from carebus_cli.reading import events, patients
from carebus_cli.send import send

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `send`, `import`, `events`, `patients`, `dlq`, `consumers`, `audit`, `claims` and `demo`."""
    app.command("send")(send)
    app.add_typer(importing, name="import")
    app.add_typer(events, name="events")
    app.add_typer(patients, name="patients")
    app.add_typer(dlq.app, name="dlq")
    app.add_typer(consumers.app, name="consumers")
    app.add_typer(audit.app, name="audit")
    app.add_typer(claims.app, name="claims")
    app.command("demo")(demo)
