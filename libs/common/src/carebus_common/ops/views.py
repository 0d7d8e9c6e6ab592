"""From rows to answers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from carebus_common.ops.masking import as_it_is, masked_payload, shown_headers, text_or_base64
from carebus_common.ops.models import (
    AgainView,
    AuditEntry,
    DeadLetterItem,
    DeadLetterView,
    PendingView,
    PurgeView,
    RevealedView,
    RunView,
    SummaryRow,
)

__all__ = ["audit_view", "dead_letter_view", "item_view", "purge_view", "revealed_view", "run_view", "summary_row"]

Document = Mapping[str, Any]


def item_view(row: Document) -> DeadLetterItem:
    return DeadLetterItem.model_validate(_item(row))


def dead_letter_view(row: Document) -> DeadLetterView:
    value = row.get("value")
    return DeadLetterView.model_validate(
        {
            **_item(row),
            "attempts": _failure(row)["attempts"],
            "causes": row.get("causes") or [],
            "edits": row.get("edits") or [],
            "redrive": row.get("redrive"),
            "discard": row.get("discard"),
            "headers": shown_headers(row.get("headers") or ()),
            "payload": masked_payload(value),
            "payloadBytes": len(value or b""),
        }
    )


def revealed_view(row: Document) -> RevealedView:
    payload, payload_encoding = as_it_is(row.get("value"))
    key, key_encoding = text_or_base64(row.get("key"))
    return RevealedView.model_validate(
        {
            "id": row["_id"],
            "patientId": row.get("patientId"),
            "key": key,
            "keyEncoding": key_encoding,
            "payload": payload,
            "payloadEncoding": payload_encoding,
            "edited": as_it_is(row.get("edited"))[0],
        }
    )


def summary_row(group: Document) -> SummaryRow:
    example, counts = group["example"], group["counts"]
    failure = example["failure"]
    return SummaryRow(
        fingerprint=group["fingerprint"],
        error_class=failure["class"],
        message=failure["message"],
        where=failure["where"],
        reason=example["reason"],
        open=counts.get("open", 0),
        redriven=counts.get("redriven", 0),
        discarded=counts.get("discarded", 0),
        patients=group["patients"],
        first=group["first"],
        last=group["last"],
        example=example["_id"],
    )


def run_view(requests: int, named: int, counts: Mapping[str, int], again: Sequence[Document]) -> RunView:
    return RunView(
        pending=PendingView(requests=requests, dead_letters=named),
        outcomes=dict(counts),
        again=[AgainView(id=row["_id"], dead_letter=row["outcome"]["deadLetter"]) for row in again],
    )


def purge_view(row: Document) -> PurgeView:
    return PurgeView.model_validate({**row, "id": row["_id"]})


def audit_view(row: Document) -> AuditEntry:
    return AuditEntry.model_validate({**row, "id": str(row["_id"]), "filter": _as_json(row.get("filter"))})


def _item(row: Document) -> dict[str, Any]:
    return {
        **{name: row.get(name) for name in _ITEM},
        "id": row["_id"],
        "blocking": bool(row.get("blocking")),
        "redrives": row.get("redrives", 0),
        "failure": _failure(row),
    }


def _failure(row: Document) -> Mapping[str, Any]:
    """Conflicts and undecodable records that were kept before failures were described have none."""
    unknown = {"class": "", "message": "", "fingerprint": "", "where": "", "attempts": 0}
    at = row["createdAt"]
    failure: Mapping[str, Any] = row.get("failure") or {**unknown, "firstFailedAt": at, "lastFailedAt": at}
    return failure


_ITEM = (
    "status",
    "reason",
    "organizationId",
    "eventId",
    "patient",
    "type",
    "source",
    "createdAt",
    "outcome",
    "previous",
)


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    return value.isoformat() if isinstance(value, datetime) else value
