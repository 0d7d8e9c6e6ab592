"""`/health`: what a service needs in order to work, checked now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, TypeAlias

__all__ = ["Check", "Unhealthy", "health_route"]

Check: TypeAlias = Callable[[], Awaitable[None]]


class Unhealthy(Exception):
    """Raised by a check; its text is shown to anybody, so it holds no secrets, addresses or patient data."""


def health_route(
    checks: Mapping[str, Check], *, timeout: timedelta = timedelta(seconds=2)
) -> Callable[[], Awaitable[Any]]:
    """An endpoint for `app.get("/health")`.

    200 `{"data": {"status": "ok", "checks": {name: "ok"}}}`, or Unavailable (503) with a detail for every check that
    raised or took longer than `timeout`.
    """
    raise NotImplementedError
