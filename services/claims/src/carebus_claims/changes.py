"""A claim as a change has it, `claim.shown`, as the store's row. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from bson import Decimal128

from carebus_claims.claim_documents import row_id

__all__ = ["row_of_shown"]

_TIMES: Final = ("serviceDate", "createdAt", "updatedAt", "decidedAt", "paidAt")


def row_of_shown(organization_id: str, claim: Mapping[str, Any]) -> dict[str, Any]:
    """What `claim_row` made of the claim that was shown so."""
    times = {name: datetime.fromisoformat(claim[name]) if claim[name] else None for name in _TIMES}
    lines = [{**line, "amount": Decimal128(line["amount"])} for line in claim["lines"]]
    return {
        **claim,
        **times,
        "_id": row_id(organization_id, claim["claimId"]),
        "organizationId": organization_id,
        "lines": lines,
        "total": Decimal128(claim["total"]),
        "paid": Decimal128(claim["paid"]),
    }
