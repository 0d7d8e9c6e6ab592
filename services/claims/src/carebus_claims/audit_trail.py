"""The audit's rows as they are in the store: verifying them, and moving the old ones to an archive.

For whoever has the audit's key, and past every permission: an operator at the command line, or a route that has
checked who asks. `claims_archives` has {_id: organization, seq, hash, mac, archivedAt}: up to where entries were moved.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from carebus_claims.archive import ArchiveWriter, Manifest, manifests, read_entries, verify_archive
from carebus_claims.chain import ChainCheck, Fault, Head, Link, archived_mac, same

__all__ = ["ARCHIVES", "ArchiveAhead", "Archived", "AuditTrail", "Verification"]

Document = dict[str, Any]

AUDIT: Final = "claims_audit"
HEADS: Final = "claims_heads"
ARCHIVES: Final = "claims_archives"

# A broken chain may have a fault an entry; the first ones say where it begins.
_MOST_FAULTS: Final = 1000
# While writers go on, each round of catching up is shorter than the one before.
_ROUNDS: Final = 20
# One transaction's deletes: small enough for any store.
_DELETED_AT_ONCE: Final = 1000


class ArchiveAhead(Exception):
    """The archive is not the one that this store's entries were moved to."""


@dataclass(slots=True)
class Verification:
    """What verifying an organization's entries found; `at` is the last one, to be kept as an anchor.

    `entries` counts those that were read, `archived` those that were moved to files before, up to `after`;
    `more_faults` were left out.
    """

    organization_id: str
    entries: int = 0
    after: Link = field(default_factory=Link)
    at: Link = field(default_factory=Link)
    faults: list[Fault] = field(default_factory=list)
    more_faults: int = 0

    @property
    def whole(self) -> bool:
        return not self.faults

    @property
    def archived(self) -> int:
        return self.after.seq

    def note(self, faults: list[Fault]) -> None:
        room = _MOST_FAULTS - len(self.faults)
        self.faults += faults[:room]
        self.more_faults += max(0, len(faults) - room)


@dataclass(frozen=True, slots=True)
class Archived:
    """What archiving did: the files it wrote, and how many entries went from the store."""

    manifests: list[Manifest]
    deleted: int


class AuditTrail:
    """All organizations' rows. Methods raise PyMongoError."""

    def __init__(self, database: AsyncDatabase[Document], key: bytes) -> None:
        self._database = database
        self._key = key

    async def organizations(self) -> list[str]:
        """All that have a head, entries, archived entries or claims."""
        found: set[str] = set()
        for name, what in ((HEADS, "_id"), (ARCHIVES, "_id"), (AUDIT, "organizationId"), ("claims", "organizationId")):
            found.update(map(str, await self._database[name].distinct(what)))
        return sorted(found)

    async def verify(
        self,
        organization_id: str,
        *,
        anchor: Link | None = None,
        on_entries: Callable[[int], None] = lambda _: None,
    ) -> Verification:
        """Check every entry, the head, and that there are no others. Writers and archiving may go on meanwhile."""
        for _ in range(_ROUNDS):
            found = await self._verify(organization_id, anchor, on_entries)
            if found.whole or await self._archived(organization_id, Verification("")) == found.after:
                break
        return found

    async def _verify(
        self, organization_id: str, anchor: Link | None, on_entries: Callable[[int], None]
    ) -> Verification:
        found = Verification(organization_id)
        found.after = after = await self._archived(organization_id, found)
        check = ChainCheck(organization_id, self._key, after=after, anchor=anchor)
        head: Head | None = None
        for _ in range(_ROUNDS):
            earlier, head = head, await self._head(organization_id)
            if earlier is not None and earlier == head:
                # Entries beyond a head that stands still were not written by a service.
                async for entry in self._rows(organization_id, check.at.seq):
                    found.note([*_misnamed(organization_id, entry), *check.add(entry)])
                break
            async for entry in self._rows(organization_id, check.at.seq, head.seq if head else None):
                found.note([*_misnamed(organization_id, entry), *check.add(entry)])
                if check.count % 1000 == 0:
                    on_entries(check.count)
            if not await self._is_beyond(organization_id, check.at.seq):
                break
        found.note(check.end(head))
        found.note(await self._strays(organization_id, check.at.seq))
        if head is None and not check.at.seq and await self._has_claims(organization_id):
            found.note([Fault(0, "head")])
        found.entries, found.at = check.count, check.at
        on_entries(check.count)
        return found

    async def archive(
        self,
        organization_id: str,
        directory: Path,
        *,
        before: datetime,
        per_file: int = 50_000,
        on_entries: Callable[[int], None] = lambda _: None,
    ) -> Archived:
        """Move the entries of before that time to files in `directory`: file, manifest, and only then delete.

        What is moved is the chain's beginning up to the first entry that is too new or that was not published yet.
        Run it again after an interruption, with the same directory: what is in files is not written again. Raises
        BrokenChain if the entries do not follow each other, ArchiveAhead if the directory is another archive, OSError.
        """
        marker = await self._archived(organization_id, None)
        there = verify_archive(directory, organization_id, self._key)
        if there.faults:
            fault = there.faults[0]
            raise ArchiveAhead(f"the archive of {organization_id} is not whole: {fault.file}: {fault.kind}")
        if there.at.seq < marker.seq:
            raise ArchiveAhead(f"entries of {organization_id} up to {marker.seq} were moved elsewhere")
        await self._check_same(organization_id, there.at, marker)
        written = await self._write(organization_id, directory, there.at, before, per_file, on_entries)
        last = written[-1].last if written else there.at
        return Archived(written, await self._delete(organization_id, directory, marker, last))

    async def _write(
        self,
        organization_id: str,
        directory: Path,
        after: Link,
        before: datetime,
        per_file: int,
        on_entries: Callable[[int], None],
    ) -> list[Manifest]:
        made: list[Manifest] = []
        count = 0
        while True:
            with ArchiveWriter(directory, organization_id, self._key, after) as writer:
                async for entry in self._rows(organization_id, after.seq):
                    if entry["at"] >= before or entry.get("publishedAt") is None:
                        break
                    writer.add(entry)
                    count += 1
                    on_entries(count)
                    if writer.count == per_file:
                        break
                if not writer.count:
                    return made
                full = writer.count == per_file
                made.append(writer.finish())
                after = made[-1].last
            if not full:
                return made

    async def _delete(self, organization_id: str, directory: Path, marker: Link, last: Link) -> int:
        """Delete the entries after `marker` up to `last`, and move the marker along, a transaction for each piece."""
        deleted = 0
        for end in _pieces(directory, organization_id, marker, last):
            deleted += await self._delete_piece(organization_id, marker, end)
            marker = end
        return deleted

    async def _delete_piece(self, organization_id: str, marker: Link, end: Link) -> int:
        row = {
            "seq": end.seq,
            "hash": end.hash,
            "mac": archived_mac(organization_id, end.seq, end.hash, self._key),
            "archivedAt": datetime.now(UTC),
        }
        marks, rows = self._database[ARCHIVES], self._database[AUDIT]
        async with (
            self._database.client.start_session() as session,
            await session.start_transaction(ReadConcern("majority"), WriteConcern("majority", j=True)),
        ):
            if marker.seq:
                moved = await marks.update_one(
                    {"_id": organization_id, "seq": marker.seq}, {"$set": row}, session=session
                )
                if not moved.matched_count:
                    raise ArchiveAhead(f"entries of {organization_id} are being moved by somebody else")
            else:
                await marks.insert_one({"_id": organization_id, **row}, session=session)
            done = await rows.delete_many({"_id": _between(organization_id, marker.seq, end.seq)}, session=session)
        return done.deleted_count

    async def _archived(self, organization_id: str, found: Verification | None) -> Link:
        """Up to where entries were moved to files. One that was not sealed with this key is a fault."""
        row = await self._database[ARCHIVES].find_one({"_id": organization_id})
        if row is None:
            return Link()
        after = Link(row.get("seq", 0), str(row.get("hash")))
        if not same(row.get("mac"), archived_mac(organization_id, after.seq, after.hash, self._key)):
            if found is None:
                raise ArchiveAhead(f"what {ARCHIVES} says of {organization_id} was not sealed with this key")
            found.note([Fault(after.seq, "head")])
        return after

    async def _check_same(self, organization_id: str, there: Link, marker: Link) -> None:
        """That the files go as far as the store says, and are of this chain."""
        if there.seq == marker.seq:
            if there != marker:
                raise ArchiveAhead(f"the archive of {organization_id} ends with another entry than was moved")
            return
        row = await self._database[AUDIT].find_one({"_id": _row_id(organization_id, there.seq)}, {"hash": 1})
        if row is None or row["hash"] != there.hash:
            raise ArchiveAhead(f"the archive of {organization_id} ends with an entry that the store does not have")

    async def _head(self, organization_id: str) -> Head | None:
        row = await self._database[HEADS].find_one({"_id": organization_id}, {"seq": 1, "hash": 1, "mac": 1})
        return Head(row.get("seq", 0), str(row.get("hash")), str(row.get("mac"))) if row else None

    async def _rows(self, organization_id: str, after: int, until: int | None = None) -> AsyncIterator[Document]:
        """In the order of their names, which is that of their numbers."""
        query = {"_id": _between(organization_id, after, until)}
        async for row in self._database[AUDIT].find(query).sort("_id", 1).batch_size(1000):
            yield row

    async def _is_beyond(self, organization_id: str, seq: int) -> bool:
        async for _ in self._rows(organization_id, seq):
            return True
        return False

    async def _strays(self, organization_id: str, until: int) -> list[Fault]:
        """Rows of the organization that go by another name, where no reading in order would meet them."""
        whose = {"organizationId": organization_id}
        rows = self._database[AUDIT]
        all_of_them = await rows.count_documents({**whose, "seq": {"$lt": until + 1}})
        if all_of_them == await rows.count_documents({**whose, "_id": _between(organization_id, 0, until)}):
            return []
        strays = rows.find(whose, {"seq": 1}).batch_size(1000)
        return [
            Fault(seq if isinstance(seq := row.get("seq"), int) else 0, "misplaced")
            async for row in strays
            if not str(row["_id"]).startswith(f"{organization_id}/")
        ]

    async def _has_claims(self, organization_id: str) -> bool:
        return await self._database["claims"].find_one({"organizationId": organization_id}, {"_id": 1}) is not None


def _row_id(organization_id: str, seq: int) -> str:
    return f"{organization_id}/{seq:012d}"


def _between(organization_id: str, after: int, until: int | None) -> Document:
    """The names of the entries after one number, up to and with another or to the last of the organization.

    No `$lte`, with which the embedded store misses rows at the bound. "0" comes right after "/".
    """
    end = f"{organization_id}0" if until is None else _row_id(organization_id, until + 1)
    return {"$gt": _row_id(organization_id, after), "$lt": end}


def _pieces(directory: Path, organization_id: str, marker: Link, last: Link) -> Iterator[Link]:
    """Where each piece of what is to be deleted ends, as the files have it: what the store says may be forged."""
    for one in manifests(directory, organization_id)[0]:
        if one.last.seq <= marker.seq:
            continue
        for entry in read_entries(directory / organization_id / one.file):
            seq = entry["seq"]
            if marker.seq < seq and (seq % _DELETED_AT_ONCE == 0 or seq == last.seq):
                yield Link(seq, entry["hash"])


def _misnamed(organization_id: str, entry: Document) -> list[Fault]:
    seq = entry.get("seq")
    if isinstance(seq, int) and entry["_id"] == _row_id(organization_id, seq):
        return []
    return [Fault(seq if isinstance(seq, int) else 0, "misplaced")]
