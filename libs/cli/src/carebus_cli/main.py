"""The `carebus` command: every subcommand is a function elsewhere, put together here."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from carebus_cli import commands, doctor, status, token, topics, up
from carebus_local.errors import LocalError

__all__ = ["app", "run"]

app = typer.Typer(
    name="carebus",
    help="Run Carebus on this machine, and talk to it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("up")(up.up)
app.command("down")(up.down)
app.command("status")(status.status)
app.command("logs")(status.logs)
app.command("doctor")(doctor.doctor)
app.command("token")(token.token)
app.add_typer(topics.app, name="topics")
commands.register(app)


def run() -> None:
    """The entry point; a failure somebody can act on is told in words and ends with 1."""
    try:
        app()
    except LocalError as error:
        Console(stderr=True).print(f"{error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    run()
