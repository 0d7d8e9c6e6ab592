"""The processor as in production, but that some events fail: `python -m tests.chaos.processor`.

An event of type `chaos` says in its `data` what happens when it is handled, until its organization's problem is
solved (`fix`): `{"fail": "transient", "times": 2}` raises RetryLater twice and then succeeds, `"permanent"` raises
DeadLetter, `"always"` RetryLater; `{"crash": true}` ends the process, `{"hang": true}` never returns. `{"slow": 2}`
takes that many seconds and then succeeds. Attempts are counted in files, so that they outlive the process.

Every patient's state also gets a trail (`trail.py`). With CHAOS_PLANTED, a bug is planted (`planted.py`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .armed import arm, home
from .trail import FIELD, Trail

if TYPE_CHECKING:
    from carebus_common.consumer import Change, Delivery, State
    from carebus_common.contracts.event import MedicalEvent

__all__ = ["fix", "handle"]


def fix(chaos_home: Path, organization_id: str) -> None:
    """Solve the problem of an organization's events: from now on they succeed."""
    (chaos_home / f"fixed-{organization_id}").touch()


def handle(state: State | None, delivery: Delivery[MedicalEvent]) -> Change | Awaitable[Change]:
    event = delivery.event
    if event.type != "chaos":
        return _applied(state, delivery)
    if event.data.get("slow") or event.data.get("hang"):
        return _slowly(state, delivery)
    _misbehave(event)
    return _applied(state, delivery)


async def _slowly(state: State | None, delivery: Delivery[MedicalEvent]) -> Change:
    data = delivery.event.data
    if data.get("hang") and not _is_fixed(delivery.event):
        await asyncio.sleep(3600)
    await asyncio.sleep(data.get("slow") or 0)
    _misbehave(delivery.event)
    return _applied(state, delivery)


def _applied(state: State | None, delivery: Delivery[MedicalEvent]) -> Change:
    from carebus_processor.handlers import handle_event

    change = handle_event(state, delivery)
    trail = Trail.from_state(state).then(str(delivery.event.event_id))
    return replace(change, state={**(change.state or {}), FIELD: list(trail)})


def _misbehave(event: MedicalEvent) -> None:
    from carebus_common.consumer import DeadLetter, RetryLater

    if _is_fixed(event):
        return
    if event.data.get("crash"):
        os.kill(os.getpid(), signal.SIGKILL)
    match event.data.get("fail"):
        case "transient" if _attempts(event) <= event.data.get("times", 1):
            raise RetryLater("a transient failure, as the test wants it")
        case "always":
            raise RetryLater("a lasting failure, as the test wants it")
        case "permanent":
            raise DeadLetter("a permanent failure, as the test wants it")


def _is_fixed(event: MedicalEvent) -> bool:
    return (home() / f"fixed-{event.organization_id}").exists()


def _attempts(event: MedicalEvent) -> int:
    """How often this event has been tried, this time included."""
    counter = home() / "attempts" / str(event.event_id)
    counter.parent.mkdir(exist_ok=True)
    with counter.open("ab") as file:
        file.write(b".")
        return file.tell()


def _main() -> None:
    arm("processor")
    from carebus_common import logging, tracing
    from carebus_common.http.server import run
    from carebus_processor.main import main
    from carebus_processor.settings import Settings

    from .planted import plant

    plant(os.environ.get("CHAOS_PLANTED"))
    settings = Settings()
    logging.configure(settings, service="processor")
    tracing.configure("processor")
    run(main(settings, handle))


if __name__ == "__main__":
    _main()
