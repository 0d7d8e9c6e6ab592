"""Verifying and archiving with the store at hand. Imported only when it is needed, for what it imports itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from carebus_claims.archive import Archive, organizations_in, verify_archive
from carebus_claims.audit_routes import audit_view
from carebus_claims.audit_trail import Archived, AuditTrail
from carebus_claims.chain import Link
from carebus_claims.settings import Settings
from carebus_common import mongo
from carebus_common.settings import MongoSettings

__all__ = ["archive_all", "open_database", "verify_all"]


@asynccontextmanager
async def open_database(store_url: str) -> AsyncIterator[mongo.Database]:
    client = mongo.connect(MongoSettings(mongo_url=store_url), app_name="carebus-cli")
    try:
        yield client[Settings(jwks="").claims_database]
    finally:
        await client.close()


async def verify_all(
    store_url: str,
    key: bytes,
    organization: str | None,
    *,
    anchor: Link | None,
    archive: Path | None,
    on_entries: Callable[[int], None],
) -> list[dict[str, Any]]:
    """A verdict for each organization, with its archive if a directory is given. Raises PyMongoError."""
    verdicts = []
    async with open_database(store_url) as database:
        trail = AuditTrail(database, key)
        there = await trail.organizations()
        archived = organizations_in(archive) if archive else []
        chosen = [organization] if organization else sorted({*there, *archived})
        for one in chosen:
            found = await trail.verify(one, anchor=anchor, on_entries=on_entries)
            verdict = audit_view(found).model_dump(by_alias=True)
            if archive is not None:
                files = verify_archive(archive, one, key)
                verdict["archive"] = _archive_verdict(files, found.after)
                verdict["whole"] = found.whole and not verdict["archive"]["faults"]
            verdicts.append(verdict)
    return verdicts


async def archive_all(
    store_url: str,
    key: bytes,
    organization: str | None,
    directory: Path,
    *,
    before: datetime,
    on_entries: Callable[[int], None],
) -> list[tuple[str, Archived]]:
    """What was moved of each organization. Raises PyMongoError, OSError, BrokenChain, ArchiveAhead."""
    async with open_database(store_url) as database:
        trail = AuditTrail(database, key)
        chosen = [organization] if organization else await trail.organizations()
        return [(one, await trail.archive(one, directory, before=before, on_entries=on_entries)) for one in chosen]


def _archive_verdict(files: Archive, moved: Link) -> dict[str, Any]:
    """An archive may be ahead of the store, after an interruption; it must not be behind."""
    faults = [{"file": fault.file, "kind": fault.kind, "seq": fault.seq} for fault in files.faults]
    if files.at.seq < moved.seq or (files.at.seq == moved.seq and files.at != moved):
        faults.append({"file": "", "kind": "tail", "seq": files.at.seq})
    return {"entries": files.entries, "at": {"seq": files.at.seq, "hash": files.at.hash}, "faults": faults}
