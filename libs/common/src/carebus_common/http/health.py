"""`/health`: what a service needs in order to work, checked now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Final, Literal, TypeAlias

from pydantic import BaseModel

from carebus_common.errors import Unavailable
from carebus_common.http.envelopes import Data
from carebus_common.logging import get_logger

__all__ = ["Check", "Health", "Unhealthy", "health_route"]

_log = get_logger(__name__)

# A check returns if all is well and raises if not.
Check: TypeAlias = Callable[[], Awaitable[object]]

# Anybody may ask, and every question costs the parts a question: within this time the last answer is repeated.
_FRESH: Final = timedelta(seconds=1)


class Unhealthy(Exception):
    """Raised by a check; its text is shown to anybody, so it holds no secrets, addresses or patient data."""


class Health(BaseModel):
    """Everything a service needs is there; `degraded`: something is not that it can do without."""

    status: Literal["ok", "degraded"] = "ok"
    checks: dict[str, str]


def health_route(
    checks: Mapping[str, Check],
    *,
    asides: Mapping[str, Check] | None = None,
    timeout: timedelta = timedelta(seconds=2),
) -> Callable[[], Awaitable[Data[Health]]]:
    """An endpoint for `app.get("/health")`, for readiness.

    200 `{"data": {"status": "ok", "checks": {name: "ok"}}}`, or Unavailable (503) with a detail `{path: name, rule:
    reason}` for every check that raised or took longer than `timeout`. The reason is the text of an `Unhealthy`,
    else only the error's class. What the service can do without is in `asides`: 200, `degraded`, with the reason.
    """
    everything = {**checks, **(asides or {})}
    lock = asyncio.Lock()
    known: dict[str, str | None] = {}
    fresh_until = float("-inf")

    async def health() -> Data[Health]:
        nonlocal known, fresh_until
        async with lock:
            if time.monotonic() >= fresh_until:
                reasons = await asyncio.gather(*(_reason(name, check, timeout) for name, check in everything.items()))
                known = dict(zip(everything, reasons, strict=True))
                fresh_until = time.monotonic() + _FRESH.total_seconds()
        failed = {name: reason for name, reason in known.items() if reason is not None}
        if not failed.keys().isdisjoint(checks):
            raise Unavailable(
                "Not everything this service needs is there.",
                retry_after=timedelta(seconds=5),
                details=[{"path": name, "rule": reason} for name, reason in failed.items()],
            )
        return Data(
            data=Health(
                status="degraded" if failed else "ok", checks={name: reason or "ok" for name, reason in known.items()}
            )
        )

    return health


async def _reason(name: str, check: Check, timeout: timedelta) -> str | None:  # noqa: ASYNC109 - bounds each check
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            await check()
    except Unhealthy as error:
        return str(error)
    except TimeoutError:
        return "no answer in time"
    except Exception as error:
        _log.warning("health-check-failed", check=name, exc_info=error)
        return type(error).__name__
    return None
