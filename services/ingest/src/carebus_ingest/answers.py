"""What ingest answers: receipts, and a batch's result per item: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from carebus_common.errors import CarebusError, RateLimited, Unavailable
from carebus_common.http import json_response
from carebus_common.http.envelopes import Header, Response
from carebus_common.messages import Receipt

__all__ = ["Outcome", "Stored", "batch_answer", "broker_away", "receipt_answer"]

# The broker is usually back within seconds, and so is the producer.
RETRY_AFTER: Final = timedelta(seconds=2)
_REPLAYED: Final = (b"idempotency-replayed", b"true")


class Stored(NamedTuple):
    """An event that the broker has acknowledged."""

    event_id: UUID
    receipt: Receipt


Outcome: TypeAlias = Stored | CarebusError


def receipt_answer(stored: Stored, public_url: str, request_id: str, *, replayed: bool = False) -> Response:
    """202 with the receipt and, in `Location`, where to ask for the event's status."""
    receipt = _receipt(stored, public_url)
    headers: list[Header] = [(b"location", receipt["statusUrl"].encode("latin-1"))]
    if replayed:
        headers.append(_REPLAYED)
    return json_response(HTTPStatus.ACCEPTED, msgspec.json.encode({"data": receipt}), request_id, headers)


def batch_answer(outcomes: Sequence[Outcome], public_url: str, request_id: str) -> Response:
    """202 if all were accepted, else 207, with a result per item in order.

    Raises `Unavailable` if the broker was asked and took none.
    """
    stored = sum(isinstance(outcome, Stored) for outcome in outcomes)
    away = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Unavailable)]
    if away and not stored:
        raise broker_away([_at(index, detail) for index, error in away for detail in error.details])
    headers: list[Header] = []
    for later in (RateLimited, Unavailable):
        for outcome in outcomes:
            if isinstance(outcome, later):
                headers = [(b"retry-after", outcome.headers["Retry-After"].encode())]
                break
    data = [_item(index, outcome, public_url) for index, outcome in enumerate(outcomes)]
    status = HTTPStatus.ACCEPTED if stored == len(outcomes) else HTTPStatus.MULTI_STATUS
    return json_response(status, msgspec.json.encode({"data": data}), request_id, headers)


def broker_away(details: Sequence[dict[str, Any]]) -> Unavailable:
    """503: nothing was acknowledged. `details` hold the eventIds, with which repeating is safe."""
    return Unavailable(
        "The broker does not acknowledge; send it again, with the same eventId.",
        retry_after=RETRY_AFTER,
        details=details,
    )


def _receipt(stored: Stored, public_url: str) -> dict[str, Any]:
    event_id, (partition, offset) = str(stored.event_id), (stored.receipt.partition, stored.receipt.offset)
    return {
        "eventId": event_id,
        "status": "accepted",
        "partition": partition,
        "offset": offset,
        "statusUrl": f"{public_url}/events/{event_id}?partition={partition}&offset={offset}",
    }


def _item(index: int, outcome: Outcome, public_url: str) -> dict[str, Any]:
    if isinstance(outcome, Stored):
        return {"index": index, **_receipt(outcome, public_url)}
    error = {"code": outcome.code, "message": outcome.message, "details": outcome.details}
    return {"index": index, "status": "rejected", "error": error}


def _at(index: int, detail: Mapping[str, Any]) -> dict[str, Any]:
    return {**detail, "path": f"$[{index}]{detail['path'][1:]}"}
