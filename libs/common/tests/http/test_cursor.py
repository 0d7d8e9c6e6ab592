"""A cursor leads on in its own list and nowhere else."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carebus_common.errors import InvalidRequest, NotFound
from carebus_common.http.cursor import CursorCodec
from carebus_common.settings import HttpSettings

CODEC = CursorCodec("a secret")
QUERY = {"patientId": "p1", "type": "lab-result", "from": None}
POSITION: list[str | int | float | bool | None] = ["2026-01-31T08:15:00+00:00", 7, "0190a5f4"]
CURSOR = CODEC.encode(POSITION, organization_id="org-a", query=QUERY)


def decode(cursor: str, organization_id: str = "org-a", query: dict[str, Any] = QUERY) -> list[Any]:
    return CODEC.decode(cursor, organization_id=organization_id, query=query)


def test_a_position_comes_back() -> None:
    assert decode(CURSOR) == POSITION


def test_a_cursor_needs_no_escaping_in_a_url() -> None:
    for number in range(50):
        cursor = CODEC.encode([number, "?&=+/ é"], organization_id="org-a", query={})
        assert cursor.replace("-", "").replace("_", "").isalnum() and cursor.isascii()


def test_the_order_of_filters_does_not_matter() -> None:
    assert decode(CURSOR, query=dict(reversed(QUERY.items()))) == POSITION


def test_another_organizations_cursor_does_not_exist() -> None:
    with pytest.raises(NotFound):
        decode(CURSOR, organization_id="org-b")


def test_another_organizations_cursor_does_not_exist_whatever_its_query() -> None:
    with pytest.raises(NotFound):
        decode(CURSOR, organization_id="org-b", query={})


@pytest.mark.parametrize(
    "query", [{}, {**QUERY, "type": "admission"}, {**QUERY, "patientId": "p2"}, {**QUERY, "to": 1}]
)
def test_a_cursor_does_not_fit_another_query(query: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        decode(CURSOR, query=query)
    assert refusal.value.details == [{"path": "cursor", "rule": "a cursor of a list with the same filters"}]


@given(place=st.integers(0, len(CURSOR) - 1), letter=st.sampled_from("AZaz09-_"))
def test_a_cursor_that_was_changed_anywhere_is_refused(place: int, letter: str) -> None:
    changed = CURSOR[:place] + letter + CURSOR[place + 1 :]
    if _bytes(changed) == _bytes(CURSOR):
        return
    with pytest.raises(InvalidRequest):
        decode(changed)


def _bytes(cursor: str) -> bytes:
    return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))


@given(cursor=st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("=")))
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        decode(cursor)


@pytest.mark.parametrize(
    "cursor", ["", "=", "A", "AAAA", CURSOR[:-1], CURSOR + "A", CURSOR + "=", "A" * 5000, "\ud800"]
)
def test_a_malformed_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        decode(cursor)


def test_a_cursor_of_another_key_is_refused() -> None:
    other = CursorCodec("another secret").encode(POSITION, organization_id="org-a", query=QUERY)
    with pytest.raises(InvalidRequest):
        decode(other)


def test_replicas_of_a_service_read_each_others_cursors() -> None:
    settings = HttpSettings(port=0)
    cursor = CursorCodec.of(settings, service="claims").encode([1], organization_id="org-a", query={})
    assert CursorCodec.of(settings, service="claims").decode(cursor, organization_id="org-a", query={}) == [1]
    with pytest.raises(InvalidRequest):
        CursorCodec.of(settings, service="billing").decode(cursor, organization_id="org-a", query={})


def test_a_configured_key_seals_the_cursors(monkeypatch: pytest.MonkeyPatch) -> None:
    cursor = CursorCodec.of(HttpSettings(port=0), service="claims").encode([1], organization_id="org-a", query={})
    monkeypatch.setenv("CAREBUS_CURSOR_KEY", "sealed")
    with pytest.raises(InvalidRequest):
        CursorCodec.of(HttpSettings(port=0), service="claims").decode(cursor, organization_id="org-a", query={})
