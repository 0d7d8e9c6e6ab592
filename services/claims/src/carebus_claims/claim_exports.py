"""Claims as CSV or NDJSON, one after the other."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from carebus_claims.claim import Claim, shown

__all__ = ["COLUMNS", "as_csv", "as_ndjson", "safe_cell"]

COLUMNS: Final = (
    "claimId",
    "version",
    "status",
    "statusReason",
    "patientId",
    "providerId",
    "payerId",
    "assignedProcessorId",
    "encounterId",
    "externalId",
    "serviceDate",
    "currency",
    "lines",
    "total",
    "paid",
    "createdAt",
    "createdBy",
    "updatedAt",
    "decidedAt",
    "paidAt",
)
# A spreadsheet takes a cell that begins so for a formula (OWASP, "CSV Injection").
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_PART: Final = 64 * 1024


def safe_cell(value: Any) -> str:
    """A cell as text; one that a spreadsheet would run begins with an apostrophe."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


async def as_csv(claims: AsyncIterator[Claim]) -> AsyncIterator[bytes]:
    """RFC 4180 with a header line; `lines` is their number."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    async for claim in claims:
        row = shown(claim)
        row["lines"] = len(claim.lines)
        writer.writerow([safe_cell(row[name]) for name in COLUMNS])
        if buffer.tell() >= _PART:
            yield buffer.getvalue().encode()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode()


async def as_ndjson(claims: AsyncIterator[Claim]) -> AsyncIterator[bytes]:
    """A line a claim, as `GET /claims/{claimId}` shows it."""
    part = bytearray()
    async for claim in claims:
        part += msgspec.json.encode(shown(claim)) + b"\n"
        if len(part) >= _PART:
            yield bytes(part)
            part.clear()
    yield bytes(part)
