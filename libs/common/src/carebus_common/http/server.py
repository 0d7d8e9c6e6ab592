"""Runs an ASGI app until the process is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.types import ASGIApp

from carebus_common.settings import HttpSettings

__all__ = ["Listening", "run", "serve"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listening:
    """The ports in use, once both listeners accept."""

    port: int
    management_port: int


async def serve(
    app: ASGIApp,
    settings: HttpSettings,
    *,
    started: Callable[[Listening], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve `app` until SIGTERM, SIGINT or `stop` (which the signals set too), then finish what is in flight.

    Returns once every connection is closed, within `settings.shutdown_timeout`. Raises OSError if a port is taken.
    """
    raise NotImplementedError


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a service's main coroutine on uvloop."""
    raise NotImplementedError
