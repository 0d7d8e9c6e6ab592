"""The claims of one organization, their audit and their figures: the only way to these collections.

    ClaimStore ──of(Tenant)──▶ TenantClaims ──write──▶ claims + claims_audit + claims_heads, in one transaction

`claims_heads` has a row for each organization: `{_id: organization, seq, hash, mac, figures: {statuses: {status:
{count, total, paid}}, open: {day of creation: {status: count}}, workload: {processor: count}}}`. Every write moves it,
so the writers of an organization take turns, its audit is one chain without gaps, and its figures are exact.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from weakref import WeakValueDictionary

import pymongo
from pymongo import IndexModel
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from carebus_claims import claim_writes, requests
from carebus_claims.claim import Claim
from carebus_claims.claim_documents import AuditEntry, ClaimChange, Origin, claim_from_row, entry_from_row, row_id
from carebus_claims.claim_queries import INDEXES, ClaimQuery, Place, place_of, queries_for
from carebus_claims.requests import Answer
from carebus_common.mongo import in_time

__all__ = ["AUDIT", "CLAIMS", "HEADS", "ClaimStore", "OrganizationHead", "Tenant", "TenantClaims", "TenantRequired"]

Document = dict[str, Any]
# What is around every transaction that changes these claims of an organization or adds some: `ClaimsCache.writing`.
Around = Callable[[str, Collection[str]], AbstractAsyncContextManager[None]]

CLAIMS: Final = "claims"
AUDIT: Final = "claims_audit"
HEADS: Final = "claims_heads"

# Writers of one organization in other processes and consumers; each try waits longer than the one before.
_TRIES: Final = 30
_LOOKUP: Final = 64


class TenantRequired(RuntimeError):
    """A query was about to run without an organization: a bug, and never the caller's fault."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization, as a verified token or an accepted event names it. Raises TenantRequired without one."""

    organization_id: str

    def __post_init__(self) -> None:
        if not isinstance(self.organization_id, str) or not self.organization_id:
            raise TenantRequired("name the organization whose claims are meant")


@dataclass(frozen=True, slots=True)
class OrganizationHead:
    """How many changes an organization has had, and its figures as the store has them."""

    seq: int
    figures: Mapping[str, Any]


class ClaimStore:
    """What needs no tenant: the indexes, and what the relay publishes. `of` gives the rest."""

    def __init__(
        self,
        database: AsyncDatabase[Document],
        *,
        audit_key: bytes,
        timeout: timedelta = timedelta(seconds=10),
        writing: Around = lambda _organization_id, _claim_ids: nullcontext(),
    ) -> None:
        self._database = database
        self._audit_key = audit_key
        self._timeout = timeout
        self._writing = writing
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create_indexes(self) -> None:
        """Create what is missing. Raises PyMongoError; may take as long as the store needs to build an index."""
        await self._database[CLAIMS].create_indexes(list(INDEXES))
        await self._database[AUDIT].create_indexes(
            [
                IndexModel([("organizationId", 1), ("claimId", 1), ("seq", 1)], name="claim"),
                IndexModel([("organizationId", 1), ("seq", 1)], name="seq", unique=True),
                IndexModel([("publishedAt", 1), ("_id", 1)], name="published"),
            ]
        )
        await requests.create_indexes(self._database)

    def of(self, tenant: Tenant) -> TenantClaims:
        lock = self._locks.setdefault(tenant.organization_id, asyncio.Lock())
        return TenantClaims(self._database, tenant, self._audit_key, self._timeout, lock, self._writing)


class TenantClaims:
    """One organization's claims. Every method raises Unavailable if the store does not answer in time."""

    def __init__(
        self,
        database: AsyncDatabase[Document],
        tenant: Tenant,
        audit_key: bytes,
        timeout: timedelta,
        lock: asyncio.Lock,
        writing: Around,
    ) -> None:
        self.organization_id: Final = tenant.organization_id
        self._database = database
        self._audit_key = audit_key
        self._timeout = timeout
        self._lock = lock
        self._writing = writing
        self._claims = database[CLAIMS]
        self._audit = database[AUDIT]
        self.requests: Final = requests.TenantRequests(database, tenant.organization_id, timeout)

    # --- reading --------------------------------------------------------------------------------------------------

    async def get(self, claim_id: str) -> Claim | None:
        with in_time(self._timeout):
            row = await self._claims.find_one(
                {"_id": row_id(self.organization_id, claim_id), "organizationId": self.organization_id}
            )
        return None if row is None else claim_from_row(row)

    async def get_many(self, claim_ids: Sequence[str], session: AsyncClientSession | None = None) -> dict[str, Claim]:
        """Those that exist, by id."""
        found: dict[str, Claim] = {}
        ids = sorted({row_id(self.organization_id, claim_id) for claim_id in claim_ids})
        with in_time(self._timeout):
            # Some stores compare each match against the whole list, so that a lookup's cost grows with its square.
            for begin in range(0, len(ids), _LOOKUP):
                where = {"_id": {"$in": ids[begin : begin + _LOOKUP]}, "organizationId": self.organization_id}
                async for row in self._claims.find(where, session=session):
                    found[row["claimId"]] = claim_from_row(row)
        return found

    async def of_patients(
        self, patient_ids: Sequence[str], statuses: Sequence[str], session: AsyncClientSession | None = None
    ) -> list[Claim]:
        """The patients' claims in one of these statuses, the oldest first."""
        found: list[Claim] = []
        ids = sorted(set(patient_ids))
        for begin in range(0, len(ids), _LOOKUP):
            where = {
                "organizationId": self.organization_id,
                "patientId": {"$in": ids[begin : begin + _LOOKUP]},
                "status": {"$in": list(statuses)},
            }
            found += [claim_from_row(row) async for row in self._claims.find(where, session=session)]
        return sorted(found, key=lambda claim: (claim.created_at, claim.claim_id))

    async def page(self, query: ClaimQuery, *, limit: int, after: Place | None = None) -> list[Claim]:
        """At most `limit` claims in the query's order, after that place."""
        found: list[Claim] = []
        with in_time(self._timeout):
            for where in queries_for(self.organization_id, query, after):
                cursor = self._claims.find(where).sort(query.order).limit(limit - len(found))
                found += [claim_from_row(row) async for row in cursor]
                if len(found) >= limit:
                    break
        return found

    async def export(self, query: ClaimQuery, *, batch: int = 500) -> AsyncIterator[Claim]:
        """All of them in the query's order, a page at a time; what changes meanwhile may be seen or not."""
        after: Place | None = None
        while claims := await self.page(query, limit=batch, after=after):
            for claim in claims:
                yield claim
            if len(claims) < batch:
                return
            after = place_of(claims[-1], query)

    async def audit_of(self, claim_id: str, *, limit: int, after_seq: int = 0) -> list[AuditEntry]:
        """A claim's changes, the oldest first, that come after a sequence number."""
        where = {"organizationId": self.organization_id, "claimId": claim_id, "seq": {"$gt": after_seq}}
        with in_time(self._timeout):
            rows = self._audit.find(where).sort("seq", pymongo.ASCENDING).limit(limit)
            return [entry_from_row(row) async for row in rows]

    async def changes_after(self, seq: int, *, limit: int) -> list[AuditEntry]:
        """The organization's changes after a sequence number, in their order."""
        where = {"organizationId": self.organization_id, "seq": {"$gt": seq, "$lt": seq + 1 + limit}}
        with in_time(self._timeout):
            rows = self._audit.find(where).sort("seq", pymongo.ASCENDING).limit(limit)
            return [entry_from_row(row) async for row in rows]

    async def head(self) -> OrganizationHead:
        """Sequence number 0 and no figures: nothing was written yet."""
        with in_time(self._timeout):
            row = await self._database[HEADS].find_one({"_id": self.organization_id})
        return OrganizationHead(row["seq"] if row else 0, row.get("figures", {}) if row else {})

    # --- writing --------------------------------------------------------------------------------------------------

    async def write(self, changes: Sequence[ClaimChange], origin: Origin, *, answer: Answer | None = None) -> list[int]:
        """Make the changes, all or none, with their audit and the answer to the request; their sequence numbers.

        Raises VersionConflict or AlreadyExists, both with the `claim_ids` concerned, when nothing was written.
        """
        with in_time(self._timeout):
            async with self.turn, self.around(changes):
                for attempt in range(_TRIES):
                    if attempt:
                        await asyncio.sleep(random.random() * min(0.005 * 2**attempt, 0.5))  # noqa: S311
                    try:
                        return await self._write_once(changes, origin, answer)
                    except claim_writes.HeadMoved:
                        continue
                    except claim_writes.Duplicate as duplicate:
                        raise await claim_writes.already_exists(
                            self._database, self.organization_id, changes
                        ) from duplicate
                    except claim_writes.Outdated as outdated:
                        if conflict := await claim_writes.version_conflict(
                            self._database, self.organization_id, changes
                        ):
                            raise conflict from outdated
                    except OperationFailure as error:
                        if not error.has_error_label("TransientTransactionError"):
                            raise
                raise claim_writes.busy()

    def around(self, changes: Sequence[ClaimChange]) -> AbstractAsyncContextManager[None]:
        """What is entered before these changes are written, and left after the transaction has ended."""
        if not changes:
            return nullcontext()
        # What is new was not known before, except that lists grow.
        changed = {change.after.claim_id for change in changes if change.before is not None}
        return self._writing(self.organization_id, changed)

    async def _write_once(self, changes: Sequence[ClaimChange], origin: Origin, answer: Answer | None) -> list[int]:
        async with self._database.client.start_session() as session:
            await session.start_transaction(
                read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority", j=True)
            )
            try:
                seqs = await self.write_in(session, [(change, origin) for change in changes])
                if answer is not None:
                    await self.requests.answered(answer, session)
            except BaseException:
                await session.abort_transaction()
                raise
            await claim_writes.commit(session)
            return seqs

    async def write_in(self, session: AsyncClientSession, changes: Sequence[tuple[ClaimChange, Origin]]) -> list[int]:
        """The same inside a transaction that somebody else begins and ends, and without trying again.

        To be within `turn`, from before what is changed was read, and within `around` the changes, both until the
        transaction has ended. Raises `claim_writes.NotWritten`; the transaction is then to be aborted.
        """
        return await claim_writes.write(self._database, session, self.organization_id, changes, self._audit_key)

    @property
    def turn(self) -> AbstractAsyncContextManager[None]:
        """What one writer of this process has at a time."""
        return self._lock
