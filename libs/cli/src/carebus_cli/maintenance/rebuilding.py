"""Rebuilding claims' read models from the topics. Imported only when it is needed, for what it imports itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from carebus_claims.changes import row_of_shown
from carebus_claims.claims_rebuild import ClaimsFindings, ClaimsRebuild
from carebus_claims.content import Difference
from carebus_claims.history_rebuild import HistoryFindings, HistoryRebuild, LogEnds
from carebus_claims.settings import Settings
from carebus_claims.subscribers import subscription
from carebus_cli.maintenance.log import GroupOffsets, TopicLog, open_log
from carebus_cli.maintenance.trail import open_database
from carebus_common import mongo

__all__ = ["Rebuilt", "rebuild_all"]

# Mending makes it whole at once; what writers or a consumer that is behind leave for later is looked at again.
_ROUNDS: Final = 10
_PENDING_SECONDS: Final = 30.0

# Told what is being done ("changes read", "events read", "comparing"), and how much of it.
Progress = Callable[[str, int], None]


@dataclass(slots=True)
class Rebuilt:
    """One organization's read models: as they were found, and what was replaced."""

    organization_id: str
    claims: ClaimsFindings = field(default_factory=ClaimsFindings)
    histories: HistoryFindings = field(default_factory=HistoryFindings)
    mended: int = 0
    swapped: bool = False

    @property
    def good(self) -> bool:
        """Whether what serves now is what the topics say, as far as they are retained."""
        return self.swapped or (self.claims.same and self.histories.same)

    def as_json(self) -> dict[str, Any]:
        claims, histories = self.claims, self.histories
        return {
            "organizationId": self.organization_id,
            "good": self.good,
            "claims": {
                **_difference(claims.claims),
                "seq": claims.seq,
                "lostChanges": claims.lost,
                "beyondRetention": claims.beyond,
                "figures": {"/".join(path): str(number) for path, number in claims.figures.items()},
                "lagging": claims.lagging,
                "noHead": claims.no_head,
            },
            "histories": {
                "events": _difference(histories.rows),
                "patients": _difference(histories.patients),
                "beyondRetention": histories.beyond,
                "parked": histories.parked,
                "pending": histories.pending,
            },
            "replaced": self.mended,
        }


def _difference(one: Difference) -> dict[str, Any]:
    return {
        "rows": one.found.rows,
        "hash": str(one.found),
        "expectedRows": one.expected.rows,
        "expectedHash": str(one.expected),
        "missing": len(one.missing),
        "different": len(one.different),
        "surplus": len(one.surplus),
    }


async def rebuild_all(
    store_url: str, bootstrap: str, organization: str | None, *, swap: bool, on_progress: Progress
) -> list[Rebuilt]:
    """Compare, and with `swap` replace what differs. Raises PyMongoError, KafkaError, LookupError."""
    settings = Settings(jwks="")
    async with (
        open_database(store_url) as database,
        open_log(bootstrap, settings.claims_changes_topic) as changes,
        open_log(bootstrap, settings.claims_topic) as events,
        GroupOffsets(bootstrap, settings.claims_group, settings.claims_topic) as group,
    ):
        claims = _Claims(database, changes, on_progress)
        histories = _Histories(database, events, group, settings, on_progress)
        await claims.rebuild.begin()
        await histories.rebuild.begin()
        try:
            await claims.catch_up()
            await histories.catch_up()
            there = {*await claims.rebuild.organizations(), *await histories.rebuild.organizations()}
            chosen = [organization] if organization else sorted(there)
            return [await _one(one, claims, histories, swap=swap) for one in chosen]
        finally:
            await claims.rebuild.end()
            await histories.rebuild.end()


async def _one(organization_id: str, claims: _Claims, histories: _Histories, *, swap: bool) -> Rebuilt:
    made = Rebuilt(organization_id)
    made.claims = found = await claims.rebuild.compare(organization_id)
    made.histories = lived = await histories.compare(organization_id)
    if not swap:
        return made
    for _ in range(_ROUNDS):
        if found.same and lived.same:
            break
        made.mended += await claims.rebuild.mend(organization_id, found)
        made.mended += await histories.rebuild.mend(lived)
        found = await claims.rebuild.compare(organization_id)
        lived = await histories.compare(organization_id)
    made.swapped = found.same and lived.same
    return made


class _Claims:
    def __init__(self, database: mongo.Database, log: TopicLog, on_progress: Progress) -> None:
        self.rebuild = ClaimsRebuild(database, row_of_shown, self.catch_up)
        self._log = log
        self._on_progress = on_progress
        self._read = 0

    async def catch_up(self) -> None:
        async for records in self._log.more():
            await self.rebuild.take([msgspec.json.decode(record.value) for record in records])
            self._read += len(records)
            self._on_progress("changes read", self._read)


class _Histories:
    def __init__(
        self, database: mongo.Database, log: TopicLog, group: GroupOffsets, settings: Settings, on_progress: Progress
    ) -> None:
        self.rebuild = HistoryRebuild(database, subscription(settings))
        self._log = log
        self._group = group
        self._on_progress = on_progress
        self._read = 0

    async def catch_up(self) -> None:
        async for records in self._log.more():
            await self.rebuild.take(records)
            self._read += len(records)
            self._on_progress("events read", self._read)

    async def compare(self, organization_id: str) -> HistoryFindings:
        """Again while patients move on, so that none is left unseen."""
        until = time.monotonic() + _PENDING_SECONDS
        while True:
            committed = await self._group.read()
            await self.catch_up()
            log = LogEnds(self._log.begins, self._log.positions, committed)
            found = await self.rebuild.compare(organization_id, log)
            if not found.pending or time.monotonic() > until:
                return found
            await asyncio.sleep(0.5)
