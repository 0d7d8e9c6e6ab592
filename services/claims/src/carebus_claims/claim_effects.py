"""Carries out what events do to claims, in the transaction that records them in the patients' histories.

For each organization of a batch: one look at the claims of its patients, and one write, however many events there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Final

from carebus_claims.claim import OPEN, Claim
from carebus_claims.claim_documents import ClaimChange, Origin
from carebus_claims.claim_events import MovingEvent, changes_of
from carebus_claims.claim_store import ClaimStore, Tenant
from carebus_claims.claim_writes import NotWritten
from carebus_common.consumer import Moved

__all__ = ["ClaimEffects"]

# A writer of this process that waits for a dead one's transaction must not keep the other organizations waiting.
_TURN: Final = timedelta(seconds=1)


class ClaimEffects:
    """`effects` of the consumer's `Store`; effects are `MovingEvent`s. `moved` is called after a transaction that was
    to move claims."""

    def __init__(self, claims: ClaimStore, moved: Callable[[], None] = lambda: None) -> None:
        self._claims = claims
        self._moved = moved

    async def __call__(self, session: Any, effects: Sequence[tuple[Any, MovingEvent]], ended: AsyncExitStack) -> None:
        """Raises Moved, PyMongoError."""
        organizations: dict[str, list[MovingEvent]] = {}
        for _, event in effects:
            organizations.setdefault(event.organization_id, []).append(event)
        ended.callback(self._moved)
        # In one order for all, so that no two wait for each other.
        for organization_id in sorted(organizations):
            await self._move(session, Tenant(organization_id), organizations[organization_id], ended)

    async def _move(self, session: Any, tenant: Tenant, events: Sequence[MovingEvent], ended: AsyncExitStack) -> None:
        claims = self._claims.of(tenant)
        async with AsyncExitStack() as turn:
            try:
                async with asyncio.timeout(_TURN.total_seconds()):
                    await turn.enter_async_context(claims.turn)
            except TimeoutError:
                raise Moved from None
            found = await claims.of_patients([event.patient_id for event in events], sorted(OPEN), session)
            changes = _changes(events, found)
            if not changes:
                return
            await turn.enter_async_context(claims.around([change for change, _ in changes]))
            try:
                await claims.write_in(session, changes)
            except NotWritten as error:
                raise Moved from error
            # It is the others' turn when this is committed.
            ended.push_async_exit(turn.pop_all())


def _changes(events: Sequence[MovingEvent], claims: Sequence[Claim]) -> list[tuple[ClaimChange, Origin]]:
    """The changes in the events' order: what one event moved, the next one may move on."""
    of_patient: dict[str, dict[str, Claim]] = {}
    for claim in claims:
        of_patient.setdefault(claim.patient_id, {})[claim.claim_id] = claim
    changes: list[tuple[ClaimChange, Origin]] = []
    for event in events:
        held = of_patient.get(event.patient_id, {})
        for change in changes_of(event, list(held.values())):
            held[change.after.claim_id] = change.after
            changes.append((change, event.origin))
    return changes
