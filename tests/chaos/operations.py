"""What an operator does in an experiment, by the ops API and through the gateway."""

from __future__ import annotations

from typing import Any, Literal

from .harness import Chaos, Failed

__all__ = ["choose_all", "consumer", "redrive_all", "resume"]

_OPERATIONS = "carebus"
_REASON = "the harness has solved the problem"


async def redrive_all(chaos: Chaos, organization: str) -> int:
    """Ask for the redrive of every open dead letter of the organization; how many were asked for."""
    return await choose_all(chaos, "redrive", organization)


async def choose_all(chaos: Chaos, action: Literal["redrive", "discard"], organization: str) -> int:
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
    token = chaos.system.token(_OPERATIONS, ["operator"], subject="chaos")
    answer = await chaos.session.http.request(
        method,
        f"{chaos.system.urls['gateway']}/ops/processor/{path}",
        json=body,
        headers={"Authorization": f"Bearer {token}"},
    )
    if answer.status_code not in (200, 202):
        raise Failed(f"{method} /ops/processor/{path}: {answer.status_code} {answer.text[:300]}")
    data: dict[str, Any] = answer.json()["data"]
    return data
