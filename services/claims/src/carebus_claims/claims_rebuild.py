"""Claims and their figures, built anew from `claims.changes.v1` beside the ones that serve, while writers go on.

A change has the whole claim after it, so the newest change of a claim is the claim. The store is never behind the
topic: what it has at a claim's version must be what the topic says of that version; and a claim that the topic does not
know although the topic was read to the organization's head is none of a service's making.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pymongo import DeleteOne, ReplaceOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from carebus_claims.content import Difference, compare, digest
from carebus_claims.figures_delta import Numbers, added, flat, nested, of_claim

__all__ = ["ClaimsFindings", "ClaimsRebuild", "Marks"]

Document = dict[str, Any]

_CLAIMS: Final = "claims"
_SHADOW: Final = "claims_shadow"
_AUDIT: Final = "claims_audit"
_HEADS: Final = "claims_heads"
_CHUNK: Final = 500
_LOOKUP: Final = 64
# How often a difference is looked at again, and a transaction that lost against a writer is run again.
_ROUNDS: Final = 20
_TRIES: Final = 50
# More than the relay has on its way at any time.
_RELAYED_AT_ONCE: Final = 10_000


class Marks:
    """Which numbers came, from 1 on, in any order: a byte each."""

    def __init__(self) -> None:
        self._marks = bytearray(b"\1")

    def add(self, seq: int) -> bool:
        """False if it had come before."""
        if seq >= len(self._marks):
            self._marks.extend(bytes(seq + 1 - len(self._marks)))
        new = not self._marks[seq]
        self._marks[seq] = 1
        return new

    @property
    def last(self) -> int:
        return len(self._marks) - 1

    @property
    def missing(self) -> int:
        """How many up to the last did not come: the topic is not retained back to them."""
        return self._marks.count(0)

    @property
    def settled(self) -> int:
        """Up to where none is still to come: the relay publishes in order, and what is long missing is not retained."""
        first_missing = self._marks.find(0)
        return self.last if first_missing < 0 else max(first_missing - 1, self.last - _RELAYED_AT_ONCE)

    def __contains__(self, seq: int) -> bool:
        return seq < len(self._marks) and bool(self._marks[seq])


@dataclass(slots=True)
class ClaimsFindings:
    """What differs of one organization. `figures` is what must be added to those that serve: {} if they are right.

    `lost` changes are not retained by the topic: claims that it does not know are then left alone, they are `beyond`,
    and so are the figures. `lagging`: the relay has not published up to the head. `no_head`: there are claims and none.
    """

    claims: Difference = field(default_factory=Difference)
    figures: Numbers = field(default_factory=dict)
    seq: int = 0
    lost: int = 0
    beyond: int = 0
    lagging: bool = False
    no_head: bool = False

    @property
    def same(self) -> bool:
        return not (self.claims.ids or self.figures or self.lagging or self.no_head)


# Reads the topic up to its end as of now, and hands all that is new to `ClaimsRebuild.take`.
CatchUp = Callable[[], Awaitable[None]]


class ClaimsRebuild:
    """All organizations' claims. Holds about 150 bytes a claim and one a change. Methods raise PyMongoError.

    `document_of` makes the store's document of a change's claim as JSON.
    """

    def __init__(
        self,
        database: AsyncDatabase[Document],
        document_of: Callable[[str, Mapping[str, Any]], Document],
        catch_up: CatchUp,
        *,
        patience: float = 30.0,
    ) -> None:
        self._database = database
        self._document_of = document_of
        self._catch_up = catch_up
        self._patience = patience
        self._versions: dict[str, int] = {}
        self._marks: dict[str, Marks] = {}
        # What came since an organization's figures were summed up, by number.
        self._since: dict[str, dict[int, Numbers]] = {}

    async def begin(self) -> None:
        """Empty the shadow."""
        await self._database[_SHADOW].drop()

    async def end(self) -> None:
        """Remove the shadow."""
        await self._database[_SHADOW].drop()

    async def take(self, changes: Sequence[Mapping[str, Any]]) -> None:
        """Fold changes into the shadow, in whatever order; one that comes twice counts once."""
        newest: dict[str, Document] = {}
        for change in changes:
            organization_id = change["organizationId"]
            if not self._marks.setdefault(organization_id, Marks()).add(change["seq"]):
                continue
            after = self._document_of(organization_id, change["after"])
            if (since := self._since.get(organization_id)) is not None:
                before = change["before"]
                moved = of_claim(after)
                if before is not None:
                    moved = added(moved, of_claim(self._document_of(organization_id, before)), -1)
                since[change["seq"]] = moved
            if after["version"] > self._versions.get(after["_id"], 0):
                self._versions[after["_id"]] = after["version"]
                newest[after["_id"]] = after
        for chunk in _chunks(list(newest.values()), _CHUNK):
            writes = [ReplaceOne({"_id": row["_id"]}, row, upsert=True) for row in chunk]
            await self._database[_SHADOW].bulk_write(writes, ordered=False)

    async def organizations(self) -> list[str]:
        found = set(self._marks)
        found.update(map(str, await self._database[_HEADS].distinct("_id")))
        found.update(await self._database[_CLAIMS].distinct("organizationId"))
        return sorted(found)

    async def compare(self, organization_id: str) -> ClaimsFindings:
        """What differs of an organization for good, after what writers do meanwhile was caught up with."""
        found = ClaimsFindings()
        await self._reach_head(organization_id, found)
        if found.lagging:
            return found
        sums: Numbers = {}
        self._since[organization_id] = {}
        found.claims = await compare(
            self._rows(_CLAIMS, organization_id), self._summed(self._rows(_SHADOW, organization_id), sums)
        )
        found.no_head = found.no_head and bool(found.claims.found.rows or found.claims.expected.rows)
        await self._look_again(organization_id, found)
        marks = self._marks.get(organization_id, Marks())
        found.seq, found.lost = marks.last, marks.missing
        if not found.lost and not found.no_head:
            await self._compare_figures(organization_id, found, sums)
        return found

    async def mend(self, organization_id: str, findings: ClaimsFindings) -> int:
        """Give what differs the shadow's content, and the figures what they lack; returns how many documents that were.

        Each piece is a transaction that also writes the head, on the number it was read at, so that it and any writer's
        exclude each other: one of them runs again. A claim that was changed since is left out. Raises PyMongoError if
        writers leave no room.
        """
        mended = 0
        pieces = _chunks(findings.claims.ids, _CHUNK) or ([[]] if findings.figures else [])
        for place, ids in enumerate(pieces):
            figures = findings.figures if place == 0 else {}
            mended += await self._in_transaction(organization_id, ids, figures)
        return mended

    async def _in_transaction(self, organization_id: str, ids: list[str], figures: Numbers) -> int:
        tries = 0
        while True:
            tries += 1
            try:
                async with (
                    self._database.client.start_session() as session,
                    await session.start_transaction(ReadConcern("snapshot"), WriteConcern("majority", j=True)),
                ):
                    return await self._mend_piece(organization_id, ids, figures, session)
            except _Overtaken:
                if tries == _TRIES:
                    raise
            except PyMongoError as error:
                if tries == _TRIES or not error.has_error_label("TransientTransactionError"):
                    raise
            await asyncio.sleep(random.uniform(0.005, 0.05))  # noqa: S311

    async def _mend_piece(
        self, organization_id: str, ids: list[str], figures: Numbers, session: AsyncClientSession
    ) -> int:
        head = await self._database[_HEADS].find_one({"_id": organization_id}, session=session)
        if head is None:
            return 0
        changed = await self._changed_since(organization_id, ids, session)
        ids = [one for one in ids if one not in changed]
        rows = {row["_id"]: row async for row in self._by_id(_SHADOW, ids, session)}
        writes: list[ReplaceOne[Document] | DeleteOne] = [
            ReplaceOne({"_id": one}, rows[one], upsert=True) if one in rows else DeleteOne({"_id": one}) for one in ids
        ]
        if writes:
            await self._database[_CLAIMS].bulk_write(writes, ordered=False, session=session)
        fenced = await self._database[_HEADS].update_one(
            {"_id": organization_id, "seq": head["seq"]},
            {"$set": {"figures": nested(added(flat(head.get("figures")), figures))}, "$inc": {"mended": 1}},
            session=session,
        )
        if not fenced.matched_count:
            raise _Overtaken
        return len(writes) + bool(figures)

    async def _changed_since(self, organization_id: str, ids: Sequence[str], session: AsyncClientSession) -> set[str]:
        """Those of the claims that have a change which the shadow does not know."""
        last = self._marks.get(organization_id, Marks()).last
        found: set[str] = set()
        newer = {"_id": {"$gt": f"{organization_id}/{last:012d}", "$lt": f"{organization_id}0"}}
        async for entry in self._database[_AUDIT].find(newer, {"claimId": 1}, session=session):
            found.add(f"{organization_id}/{entry['claimId']}")
        return found.intersection(ids)

    async def _look_again(self, organization_id: str, found: ClaimsFindings) -> None:
        """Leave what differs for good: read those that differ anew, catch up with the head, and compare that."""
        waiting = set(found.claims.ids)
        found.claims.missing, found.claims.different, found.claims.surplus = [], [], []
        floor: dict[str, int] = {}
        for _ in range(_ROUNDS):
            if not waiting:
                break
            stored = {row["_id"]: row async for row in self._by_id(_CLAIMS, sorted(waiting))}
            known = {one: self._versions[one] for one in waiting if one in self._versions}
            await self._reach_head(organization_id, found)
            if found.lagging:
                return
            shadow = {row["_id"]: row async for row in self._by_id(_SHADOW, sorted(waiting))}
            for one in sorted(waiting):
                row, should_be = stored.get(one), shadow.get(one)
                if row is None:
                    # The shadow may have learnt of it only now.
                    verdict = found.claims.missing if one in known else None
                elif should_be is None:
                    verdict = found.claims.surplus
                elif floor.get(one, 0) <= _version(row) < should_be["version"]:
                    # Read before its newest change: once more.
                    floor[one] = should_be["version"]
                    continue
                else:
                    verdict = None if digest(row) == digest(should_be) else found.claims.different
                waiting.discard(one)
                if verdict is not None:
                    verdict.append(one)
        if self._marks.get(organization_id, Marks()).missing:
            found.beyond, found.claims.surplus = len(found.claims.surplus), []

    async def _compare_figures(self, organization_id: str, found: ClaimsFindings, sums: Numbers) -> None:
        """Those of a head against the sums of the shadow, put forward or back to the head's number."""
        head = await self._database[_HEADS].find_one({"_id": organization_id}, {"seq": 1, "figures": 1})
        if head is None:
            return
        await self._reach_head(organization_id, found, head["seq"])
        expected = sums
        for seq, moved in self._since[organization_id].items():
            if seq <= head["seq"]:
                expected = added(expected, moved)
        found.figures = added(expected, flat(head.get("figures")), -1)

    async def _reach_head(self, organization_id: str, found: ClaimsFindings, seq: int | None = None) -> None:
        """Catch up until the shadow knows the change that is the head now; `lagging` if the relay takes too long."""
        if seq is None:
            head = await self._database[_HEADS].find_one({"_id": organization_id}, {"seq": 1})
            found.no_head = head is None
            seq = head["seq"] if head else 0
        until = asyncio.get_running_loop().time() + self._patience
        while seq and await self._unpublished(organization_id, seq):
            if asyncio.get_running_loop().time() > until:
                found.lagging = True
                return
            await asyncio.sleep(0.05)
        await self._catch_up()

    async def _unpublished(self, organization_id: str, seq: int) -> bool:
        """Whether a change up to that number still waits for the relay."""
        if seq in self._marks.get(organization_id, Marks()):
            return False
        waiting = {
            "_id": {"$gt": f"{organization_id}/", "$lt": f"{organization_id}/{seq + 1:012d}"},
            "publishedAt": None,
        }
        return await self._database[_AUDIT].find_one(waiting, {"_id": 1}) is not None

    async def _summed(self, rows: AsyncIterator[Document], sums: Numbers) -> AsyncIterator[Document]:
        async for row in rows:
            for path, number in of_claim(row).items():
                sums[path] = sums.get(path, number - number) + number
            yield row

    async def _rows(self, name: str, organization_id: str) -> AsyncIterator[Document]:
        query = {"_id": {"$gt": f"{organization_id}/", "$lt": f"{organization_id}0"}}
        async for row in self._database[name].find(query).sort("_id", 1).batch_size(1000):
            yield row

    async def _by_id(
        self, name: str, ids: Sequence[str], session: AsyncClientSession | None = None
    ) -> AsyncIterator[Document]:
        for chunk in _chunks(ids, _LOOKUP):
            async for row in self._database[name].find({"_id": {"$in": chunk}}, session=session):
                yield row


class _Overtaken(PyMongoError):
    """The head moved between reading and writing it."""


def _version(row: Mapping[str, Any]) -> int:
    """One that was tampered with is none, and lower than any."""
    version = row.get("version")
    return version if isinstance(version, int) and not isinstance(version, bool) else -1


def _chunks(items: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(items[begin : begin + size]) for begin in range(0, len(items), size)]
