"""From a body to the message: what a record holds, and how a body is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from carebus_common.contracts.event import MAX_DATA_BYTES, MedicalEvent, event_id_from_key
from carebus_common.errors import InvalidRequest, MalformedJson, PayloadTooLarge
from carebus_ingest.accept import Sender, accept_event

NOW = datetime(2026, 3, 1, 12, 0, 0, 123000, tzinfo=UTC)
SENDER = Sender("org-a", NOW, "00-" + "1" * 32 + "-" + "2" * 16 + "-01")
EVENT: dict[str, Any] = {
    "eventId": "6ec57f84-0000-4000-8000-000000000001",
    "patientId": "päti/ent 1",
    "type": "lab-result",
    "ts": "2026-03-01T07:00:00.5-05:00",
    "data": {"code": "2823-3", "value": 6.1, "referenceRange": {"low": 3.5, "high": 5.1}, "own": [1, None]},
}


def body(**fields: Any) -> bytes:
    return json.dumps({name: value for name, value in {**EVENT, **fields}.items() if value is not ...}).encode()


def problems(given: bytes) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as refused:
        accept_event(given, SENDER)
    return [(detail["path"], detail["rule"]) for detail in refused.value.details]


def test_the_record_is_the_event_with_its_organization_and_its_time_of_receipt() -> None:
    message = accept_event(body(), SENDER).message
    assert message.topic == "medical.events.v1"
    assert message.key == "päti/ent 1".encode()
    assert message.value is not None
    assert json.loads(message.value) == {
        **EVENT,
        "ts": "2026-03-01T07:00:00.500000-05:00",
        "organizationId": "org-a",
        "receivedAt": "2026-03-01T12:00:00.123000Z",
    }
    event = MedicalEvent.model_validate_json(message.value)
    assert (event.event_id, event.ts, event.received_at) == (
        UUID(EVENT["eventId"]),
        datetime.fromisoformat(EVENT["ts"]),
        NOW,
    )


def test_the_record_has_the_cloudevents_headers_of_kafkas_binary_mode() -> None:
    assert dict(accept_event(body(), SENDER).message.headers) == {
        "ce_specversion": b"1.0",
        "ce_id": EVENT["eventId"].encode(),
        "ce_source": b"/organizations/org-a",
        "ce_type": b"lab-result",
        "ce_time": b"2026-03-01T07:00:00.500000-05:00",
        "content-type": b"application/json",
        "organizationId": b"org-a",
        "schemaVersion": b"1",
        "traceparent": SENDER.traceparent.encode(),
    }


def test_an_event_without_an_id_gets_one_from_the_idempotency_key_or_a_new_one() -> None:
    keyed = Sender("org-a", NOW, SENDER.traceparent, "order-7")
    first, again = accept_event(body(eventId=...), keyed), accept_event(body(eventId=...), keyed)
    assert first.event_id == again.event_id == event_id_from_key("org-a", "order-7")
    elsewhere = Sender("org-b", NOW, SENDER.traceparent, "order-7")
    assert accept_event(body(eventId=...), elsewhere).event_id != first.event_id
    assert accept_event(body(), keyed).event_id == UUID(EVENT["eventId"])
    new = {accept_event(body(eventId=...), SENDER).event_id for _ in range(10)}
    assert len(new) == 10
    assert {event_id.version for event_id in new} == {7}


def test_every_offending_field_is_named_with_its_rule_and_without_its_value() -> None:
    given = body(
        eventId="nope-jane", patientId="", type="a b", ts="2026-03-01", data={"value": {}, "unit": 7}, extra="jane"
    )
    found = dict(problems(given))
    assert set(found) == {"$.eventId", "$.patientId", "$.type", "$.ts", "$.extra"}
    assert "jane" not in str(found)
    found = dict(problems(body(ts="yesterday", data={"value": {"jane": 1}, "unit": 7})))
    assert set(found) == {"$.ts", "$.data.value", "$.data.unit"}
    assert "jane" not in str(found)


@pytest.mark.parametrize("field", ["patientId", "type", "ts", "data"])
def test_a_missing_field_is_named(field: str) -> None:
    assert problems(body(**{field: ...})) == [(f"$.{field}", "Field required")]


@pytest.mark.parametrize("field", ["organizationId", "receivedAt"])
def test_what_comes_from_the_token_and_the_clock_is_refused_in_a_body(field: str) -> None:
    assert problems(body(**{field: "org-b"})) == [(f"$.{field}", "unknown name")]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eventId", {"$ne": 1}),
        ("eventId", 7),
        ("eventId", "6ec57f84000040008000000000000001"),
        ("patientId", "x" * 129),
        ("patientId", ["p"]),
        ("patientId", 7),
        ("type", "x" * 65),
        ("type", "Mixed_Case"),
        ("type", "lab-result\n"),
        ("ts", 1772366400),
        ("ts", "2026-03-01T07:00:00"),
        ("ts", "2026-02-30T07:00:00Z"),
        ("data", []),
        ("data", None),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(field: str, value: Any) -> None:
    if isinstance(value, dict):
        with pytest.raises(MalformedJson):
            accept_event(body(**{field: value}), SENDER)
    else:
        assert [path for path, _ in problems(body(**{field: value}))] == [f"$.{field}"]


def test_an_event_of_an_unknown_type_is_taken_as_it_is() -> None:
    data = {"value": {"anything": [True]}, "heartRate": "eighty"}
    message = accept_event(body(type="bed.cleaned", data=data), SENDER).message
    assert message.value is not None
    assert json.loads(message.value)["data"] == data


def test_data_may_have_32_levels_and_256_kibibytes_and_no_more() -> None:
    deep: Any = {}
    for _ in range(31):
        deep = {"a": deep}
    assert accept_event(body(data=deep), SENDER)
    with pytest.raises(MalformedJson) as refused:
        accept_event(body(data={"a": deep}), SENDER)
    assert refused.value.details[0]["rule"] == "too-deep"
    assert refused.value.details[0]["path"] == "$.data" + ".a" * 32

    full = {"a": "x" * (MAX_DATA_BYTES - len('{"a":""}'))}
    assert accept_event(body(data=full), SENDER)
    with pytest.raises(PayloadTooLarge):
        accept_event(body(data={"a": full["a"] + "x"}), SENDER)
    grows = b'{"a":[' + b",".join([b"1e15"] * 30_000) + b"]}"
    with pytest.raises(PayloadTooLarge):
        accept_event(body(data=7).replace(b"7}", grows + b"}"), SENDER)


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(MalformedJson):
        accept_event(b"[]", SENDER)
