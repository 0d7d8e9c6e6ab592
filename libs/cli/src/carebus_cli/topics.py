"""`carebus topics`: the topics on a broker, and what is in them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from carebus_cli.connection import DEFAULT_STATE_DIR, JsonOption, StateDirOption
from carebus_cli.meter import stdout
from carebus_cli.progress import Waiting
from carebus_cli.tail import tail
from carebus_local import state
from carebus_local.errors import LocalError, NotRunning
from carebus_local.topics import TopicChange, TopicsRefused, apply

__all__ = ["app"]

app = typer.Typer(help="The topics on a broker, and what is in them.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The topics on a broker, and what is in them."""


app.command("tail")(tail)


@app.command("apply")
def apply_topics(
    *,
    bootstrap: Annotated[
        str | None, typer.Option(envvar="CAREBUS_KAFKA_BOOTSTRAP", help="The broker; else that of a running `up`.")
    ] = None,
    replication_factor: Annotated[
        int,
        typer.Option(
            min=1, envvar="CAREBUS_KAFKA_REPLICATION_FACTOR", help="Replicas of a topic created: 3 in production."
        ),
    ] = 1,
    grow_partitions: Annotated[
        bool, typer.Option("--grow-partitions", help="Let partitions grow, which moves patients to other ones.")
    ] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the broker.")] = 30,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Create the topics, or alter them to match their definitions. A second time changes nothing."""
    with Waiting("applying", quiet=as_json):
        changes = asyncio.run(
            _apply(
                bootstrap or _running_broker(state_dir), replication_factor, grow_partitions, timedelta(seconds=wait)
            )
        )
    if as_json:
        typer.echo(json.dumps([asdict(change) for change in changes], indent=2))
        return
    for change in changes:
        stdout.print(f"{change.name:<30} {change.action:<10} {change.detail}".rstrip())


async def _apply(bootstrap: str, replication_factor: int, grow: bool, wait: timedelta) -> list[TopicChange]:
    # The client logs every attempt; what matters is said once, below.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    until = time.monotonic() + wait.total_seconds()
    while True:
        try:
            return await apply(bootstrap, replication_factor=replication_factor, grow_partitions=grow)
        except TopicsRefused:
            raise
        except Exception as error:  # The client has many ways to say that the broker is away or not ready yet.
            if time.monotonic() >= until:
                raise LocalError(
                    f"the broker at {bootstrap} did not apply the topics within {wait.total_seconds():g} s: "
                    f"{type(error).__name__}: {error}"
                ) from error
            await asyncio.sleep(0.5)


def _running_broker(state_dir: Path) -> str:
    running = state.read(state_dir)
    if running is None or not running.supervisor.alive() or "kafka" not in running.urls:
        raise NotRunning(state_dir)
    return running.urls["kafka"]
