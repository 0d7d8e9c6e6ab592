"""What an operator does in an experiment, by the ops API and through the gateway."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, Literal

import httpx

from .harness import Chaos, Failed

__all__ = ["consumer", "discard_all", "redrive_all", "resume"]

_OPERATIONS = "carebus"
_PATIENCE = 60.0
_REASON = "the harness has solved the problem"


async def redrive_all(chaos: Chaos, organization: str) -> int:
    """Ask for the redrive of every open dead letter of the organization; how many were asked for."""
    return await _choose_all(chaos, "redrive", organization)


async def discard_all(chaos: Chaos, organization: str) -> int:
    """Give up every open dead letter of the organization."""
    return await _choose_all(chaos, "discard", organization)


async def _choose_all(chaos: Chaos, action: Literal["redrive", "discard"], organization: str) -> int:
    """The same, redrive or discard; page by page."""
    requested: int = 0
    body: dict[str, Any] = {"filter": {"organizationId": organization}, "reason": _REASON, "dryRun": False}
    while True:
        data = await _ask(chaos, "POST", f"dead-letters/{action}", body)
        requested += int(data["requested"])
        if data["next"] is None:
            return requested
        body["cursor"] = data["next"]


async def consumer(chaos: Chaos) -> dict[str, Any]:
    return await _ask(chaos, "GET", "consumer", None)


async def resume(chaos: Chaos) -> None:
    """Let the consumer go on after it has stopped itself."""
    await _ask(chaos, "POST", "consumer/resume", {"reason": _REASON})


async def _ask(chaos: Chaos, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """Asks again while the service is away: it may just have been killed."""
    headers = {"Authorization": f"Bearer {chaos.system.token(_OPERATIONS, ['operator'], subject='chaos')}"}
    url = f"{chaos.system.urls['gateway']}/ops/processor/{path}"
    deadline = monotonic() + _PATIENCE
    while True:
        try:
            answer = await chaos.session.http.request(method, url, json=body, headers=headers)
        except httpx.HTTPError as error:
            if monotonic() > deadline:
                raise Failed(f"{method} {path}: {type(error).__name__}") from error
        else:
            if answer.is_success:
                data: dict[str, Any] = answer.json()["data"]
                return data
            if answer.status_code not in (502, 503, 504) or monotonic() > deadline:
                raise Failed(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        await asyncio.sleep(0.5)
