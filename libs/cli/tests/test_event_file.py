import uuid

import msgspec
import pytest

from carebus_cli.event_file import NotEvents, parse_events

ADMISSION = b'{"eventId":"0b5e2f6e-7d43-4a64-9d5f-2c8f0b5b8a11","patientId":"p1","type":"admission"}'


@pytest.mark.parametrize(
    "text",
    [
        ADMISSION,
        b"  " + ADMISSION + b"\n",
        b"[" + ADMISSION + b"]",
        ADMISSION.replace(b",", b",\n  "),
        b"[\n" + ADMISSION.replace(b",", b",\n  ") + b"\n]",
    ],
    ids=["object", "padded", "array", "object over lines", "array over lines"],
)
def test_one_event_is_read_in_any_form(text: bytes) -> None:
    (event,) = parse_events(text)
    assert (event.place, event.patient_id, event.type) == (0, "p1", "admission")
    assert event.body == ADMISSION


def test_ndjson_is_read_line_by_line_with_empty_lines_between() -> None:
    events = parse_events(ADMISSION + b"\r\n\n" + ADMISSION.replace(b"p1", b"p2") + b"\n")
    assert [(event.place, event.patient_id) for event in events] == [(0, "p1"), (1, "p2")]


@pytest.mark.parametrize("text", [b'{"patientId":"p1"}', b'{ "patientId" : "p1" }', b"{}", b"{ }"])
def test_an_event_without_an_id_gets_one(text: bytes) -> None:
    (event,) = parse_events(text)
    body = msgspec.json.decode(event.body)
    assert uuid.UUID(body.pop("eventId")).version == 7
    assert body == msgspec.json.decode(text)


def test_what_ingest_must_judge_is_passed_on_as_it_is() -> None:
    """Duplicate keys, wrong types and broken lines are for ingest to refuse, each by its place."""
    lines = [
        b'{"eventId":"x","eventId":"y","patientId":"p"}',
        b'{"eventId":null,"patientId":7}',
        b'{"broken":',
        b"[1]",
        b'{"eventId":"z","patientId":"p","data":{"n":123456789012345678901234567890}}',
    ]
    assert [event.body for event in parse_events(b"\n".join(lines))] == lines


def test_numbers_of_an_array_keep_their_digits() -> None:
    item = b'{"eventId":"z","data":{"n":123456789012345678901234567890,"m":1.10}}'
    assert parse_events(b"[" + item + b"]")[0].body == item


@pytest.mark.parametrize("text", [b"", b" \n ", b"hello", b'"text"', b'[{"a": 1}, {"b": ]', b"\xff\xfe{}"])
def test_text_that_is_no_events_is_refused(text: bytes) -> None:
    with pytest.raises(NotEvents):
        parse_events(text)


def test_a_malformed_array_is_told_by_place_and_not_by_content() -> None:
    with pytest.raises(NotEvents) as caught:
        parse_events(b'[{"patientId": "Jane Doe", "type": }]')
    assert "malformed at byte" in str(caught.value)
    assert "Jane" not in str(caught.value)
