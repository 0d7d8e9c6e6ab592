"""What a batch answers, by what became of its items."""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import UUID

import pytest

from carebus_common.errors import InvalidRequest, RateLimited, Unavailable
from carebus_common.messages import Receipt
from carebus_ingest.answers import Stored, batch_answer, broker_away, receipt_answer

ID = UUID("6ec57f84-0000-4000-8000-000000000001")
STORED = Stored(ID, Receipt(3, 17))
INVALID = InvalidRequest("No.", details=[{"path": "$.ts", "rule": "r"}])
AWAY = broker_away([{"path": "$.eventId", "rule": "repeat with this one", "eventId": str(ID)}])
LIMITED = RateLimited("No.", retry_after=timedelta(seconds=40))
RECEIPT = {
    "eventId": str(ID),
    "status": "accepted",
    "partition": 3,
    "offset": 17,
    "statusUrl": f"https://c/events/{ID}?partition=3&offset=17",
}


def test_a_receipt_says_where_the_event_is_and_where_to_ask_for_it() -> None:
    status, headers, body = receipt_answer(STORED, "https://c", "r-1")
    assert status == 202
    assert json.loads(body) == {"data": RECEIPT}
    assert dict(headers)[b"location"] == RECEIPT["statusUrl"].encode()  # type: ignore[attr-defined]
    assert b"idempotency-replayed" not in dict(headers)
    assert dict(receipt_answer(STORED, "https://c", "r-1", replayed=True)[1])[b"idempotency-replayed"] == b"true"


def test_a_batch_of_which_all_was_accepted_is_202_with_a_receipt_each() -> None:
    status, headers, body = batch_answer([STORED, STORED], "https://c", "r-1")
    assert status == 202
    assert json.loads(body) == {"data": [{"index": 0, **RECEIPT}, {"index": 1, **RECEIPT}]}
    assert b"retry-after" not in dict(headers)


def test_a_mixed_batch_is_207_and_names_each_items_error() -> None:
    status, headers, body = batch_answer([INVALID, STORED], "https://c", "r-1")
    assert status == 207
    error = {"code": "invalid-request", "message": "No.", "details": [{"path": "$.ts", "rule": "r"}]}
    assert json.loads(body)["data"] == [{"index": 0, "status": "rejected", "error": error}, {"index": 1, **RECEIPT}]
    assert b"retry-after" not in dict(headers)


def test_a_batch_of_which_some_may_be_repeated_says_when() -> None:
    assert dict(batch_answer([STORED, AWAY], "https://c", "r-1")[1])[b"retry-after"] == b"2"
    assert dict(batch_answer([STORED, LIMITED], "https://c", "r-1")[1])[b"retry-after"] == b"40"


def test_a_batch_of_which_the_broker_took_nothing_is_503_with_the_ids_to_repeat_with() -> None:
    with pytest.raises(Unavailable) as refused:
        batch_answer([INVALID, AWAY], "https://c", "r-1")
    assert refused.value.details == [{"path": "$[1].eventId", "rule": "repeat with this one", "eventId": str(ID)}]
    assert refused.value.headers["Retry-After"] == "2"
