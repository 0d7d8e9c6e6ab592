"""What may stand in an Idempotency-Key header."""

from __future__ import annotations

import pytest

from carebus_common.errors import InvalidRequest
from carebus_common.http.idempotency_key import parse_key


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (b'"8e03978e"', "8e03978e"),
        (b'"a \\"b\\" \\\\c"', 'a "b" \\c'),
        (b"order 7/3; x=1", "order 7/3; x=1"),
        (b"x" * 255, "x" * 255),
        (b'"' + b"x" * 255 + b'"', "x" * 255),
        (None, None),
    ],
)
def test_a_key_is_read_with_and_without_the_quotes_of_a_structured_field(value: bytes | None, key: str | None) -> None:
    assert parse_key(value) == key


@pytest.mark.parametrize(
    "value", [b"", b'""', b'"', b'"a', b'"a"b"', b'"a\\b"', b" ", "ä".encode(), b"\x01", b"a\tb", b"x" * 256]
)
def test_anything_else_is_refused_without_being_repeated(value: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_key(value)
    assert refused.value.details[0]["path"] == "idempotency-key"
    assert value.decode("latin-1") == "" or value.decode("latin-1") not in str(refused.value.details) or len(value) == 1
