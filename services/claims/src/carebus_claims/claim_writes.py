"""One transaction that changes claims: the claims, an audit entry for each change, and the organization's head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from pymongo import InsertOne, ReplaceOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure, PyMongoError

from carebus_claims.chain import Link, head_mac
from carebus_claims.claim import Claim, VersionConflict
from carebus_claims.claim_documents import ClaimChange, Origin, audit_row, claim_row, row_id
from carebus_claims.figures_delta import added, flat, nested, of_claim
from carebus_common.errors import Conflict, Unavailable
from carebus_common.failpoints import failpoint

__all__ = [
    "AlreadyExists",
    "Duplicate",
    "HeadMoved",
    "NotWritten",
    "Outdated",
    "already_exists",
    "busy",
    "commit",
    "version_conflict",
    "write",
]

Document = dict[str, Any]

_DUPLICATE_KEY = 11000
_COMMITS = 5


class NotWritten(Exception):
    """The transaction cannot go on; it is to be aborted."""


class HeadMoved(NotWritten):
    """Somebody else wrote to this organization meanwhile: begin again."""


class Duplicate(NotWritten):
    """A claim of the changes, or its externalId, exists already."""


class Outdated(NotWritten):
    """A claim of the changes is at another version than it was read at."""


class AlreadyExists(Conflict):
    """There is a claim with this id, or with this externalId; `claim_ids` are those of the changes."""

    code = "already-exists"

    def __init__(self, claim_ids: Iterable[str]) -> None:
        super().__init__("There is a claim with this claimId or externalId already.")
        self.claim_ids = frozenset(claim_ids)


async def write(
    database: AsyncDatabase[Document],
    session: AsyncClientSession,
    organization_id: str,
    changes: Sequence[tuple[ClaimChange, Origin]],
    key: bytes,
) -> list[int]:
    """Write within the session's transaction, each change as from its own origin; the changes' sequence numbers.

    Raises HeadMoved, Duplicate or Outdated, which are NotWritten, and PyMongoError.
    """
    if not changes:
        return []
    head = await database["claims_heads"].find_one({"_id": organization_id}, session=session)
    await _write_claims(database, session, organization_id, [change for change, _ in changes])
    link = Link(head["seq"], head["hash"]) if head else Link()
    rows: list[Document] = []
    figures = flat(head.get("figures") if head else None)
    for change, origin in changes:
        row = audit_row(change, origin, link, key)
        link = Link(row["seq"], row["hash"])
        rows.append(row)
        if change.before is not None:
            figures = added(figures, of_claim(claim_row(change.before)), -1)
        figures = added(figures, of_claim(claim_row(change.after)))
    after = {
        "seq": link.seq,
        "hash": link.hash,
        "mac": head_mac(organization_id, link.seq, link.hash, key),
        "figures": nested(figures),
    }
    try:
        await database["claims_audit"].insert_many(rows, ordered=False, session=session)
        if head is None:
            await database["claims_heads"].insert_one({"_id": organization_id, **after}, session=session)
            return [row["seq"] for row in rows]
    except (BulkWriteError, DuplicateKeyError) as error:
        raise HeadMoved from error
    moved = await database["claims_heads"].update_one(
        {"_id": organization_id, "seq": head["seq"], "hash": head["hash"]}, {"$set": after}, session=session
    )
    if not moved.matched_count:
        raise HeadMoved
    return [row["seq"] for row in rows]


async def _write_claims(
    database: AsyncDatabase[Document],
    session: AsyncClientSession,
    organization_id: str,
    changes: Sequence[ClaimChange],
) -> None:
    # A claim that changes twice at once is written once, from its first state to its last.
    first: dict[str, Claim | None] = {}
    last: dict[str, Claim] = {}
    for change in changes:
        if change.after.organization_id != organization_id:
            raise ValueError("a claim of another organization")
        first.setdefault(change.after.claim_id, change.before)
        last[change.after.claim_id] = change.after
    operations: list[InsertOne[Document] | ReplaceOne[Document]] = []
    for claim_id, before in first.items():
        row = claim_row(last[claim_id])
        if before is None:
            operations.append(InsertOne(row))
        else:
            as_read = {"_id": row["_id"], "organizationId": organization_id, "version": before.version}
            operations.append(ReplaceOne(as_read, row))
    expected = sum(before is not None for before in first.values())
    try:
        done = await database["claims"].bulk_write(operations, ordered=False, session=session)
    except BulkWriteError as error:
        codes = {item.get("code") for item in error.details.get("writeErrors", ())}
        if _DUPLICATE_KEY in codes:
            raise Duplicate from error
        if error.has_error_label("TransientTransactionError"):
            raise HeadMoved from error
        raise
    if done.matched_count != expected:
        raise Outdated


async def _versions(database: AsyncDatabase[Document], ids: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for begin in range(0, len(ids), 64):
        where = {"_id": {"$in": ids[begin : begin + 64]}}
        async for row in database["claims"].find(where, {"version": 1}):
            found[row["_id"]] = row["version"]
    return found


async def version_conflict(
    database: AsyncDatabase[Document], organization_id: str, changes: Sequence[ClaimChange]
) -> VersionConflict | None:
    """Which of the changed claims are not as they were read; None if they are, by now. Asked after the abort."""
    first: dict[str, Claim | None] = {}
    for change in changes:
        first.setdefault(change.after.claim_id, change.before)
    read = {claim_id: before.version for claim_id, before in first.items() if before is not None}
    found = await _versions(database, [row_id(organization_id, claim_id) for claim_id in read])
    lost = [claim_id for claim_id, version in read.items() if found.get(row_id(organization_id, claim_id)) != version]
    return VersionConflict(lost) if lost else None


async def already_exists(
    database: AsyncDatabase[Document], organization_id: str, changes: Sequence[ClaimChange]
) -> AlreadyExists | Unavailable:
    """Which of the new claims exist already, and which of all have another one's externalId. Asked after the abort."""
    new = {row_id(organization_id, change.after.claim_id) for change in changes if change.before is None}
    known = await _versions(database, sorted(new))
    wanted = {row_id(organization_id, change.after.claim_id): change.after for change in changes}
    external = sorted({claim.external_id for claim in wanted.values() if claim.external_id is not None})
    holders: dict[str, str] = {}
    for begin in range(0, len(external), 64):
        where = {"organizationId": organization_id, "externalId": {"$in": external[begin : begin + 64]}}
        async for row in database["claims"].find(where, {"externalId": 1}):
            holders[row["externalId"]] = row["_id"]
    refused: list[str] = []
    for own, claim in wanted.items():
        # Of several changes that want one externalId, the first has it.
        holder = own if claim.external_id is None else holders.setdefault(claim.external_id, own)
        if own in known or holder != own:
            refused.append(claim.claim_id)
    return AlreadyExists(refused) if refused else busy()


def busy() -> Unavailable:
    return Unavailable("Too many are writing to this organization's claims.", retry_after=timedelta(seconds=1))


async def commit(session: AsyncClientSession) -> None:
    """Commit; one whose outcome is unknown is committed again, which the store answers with what came of it."""
    failpoint("before-claims-commit")
    for attempt in range(_COMMITS):
        try:
            await session.commit_transaction()
            break
        except PyMongoError as error:
            unknown = error.has_error_label("UnknownTransactionCommitResult")
            # 50: the caller's time is up.
            if not unknown or attempt == _COMMITS - 1 or (isinstance(error, OperationFailure) and error.code == 50):
                raise
    failpoint("after-claims-commit")
