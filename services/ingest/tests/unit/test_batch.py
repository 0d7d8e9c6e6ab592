"""Cutting a batch: what is one item, and what breaks the whole."""

from __future__ import annotations

import json
import time
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carebus_common.errors import InvalidRequest, MalformedJson, PayloadTooLarge
from carebus_ingest import batch
from carebus_ingest.batch import NDJSON_TYPES, cut

JSON = "application/json"
NDJSON = NDJSON_TYPES[0]


def refusal(body: bytes, media_type: str = JSON) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as refused:
        cut(body, media_type, 100)
    (detail,) = refused.value.details
    return detail["path"], detail["rule"]


def test_an_array_is_cut_at_its_commas_and_nowhere_else() -> None:
    items = [b'{"a":"],[{\\","}', b"[1, [2]]", b'"x,y"', b"{}", b"1"]
    assert cut(b" [\n" + b" ,\r\n".join(items) + b"\t] \n", JSON, 100) == items


@pytest.mark.parametrize("media_type", NDJSON_TYPES)
def test_ndjson_is_cut_at_its_line_breaks(media_type: str) -> None:
    assert cut(b'{"a":1}\r\n\n  {"b":2}\nbroken\n', media_type, 100) == [b'{"a":1}', b'{"b":2}', b"broken"]


@pytest.mark.parametrize(
    ("body", "path", "rule"),
    [
        (b'[{"a":1},{"b":}]', "$[1].b", "syntax"),
        (b'[{"a":1},{"b":NaN}]', "$[1].b", "not-a-number"),
        (b'[{"a":1} {"b":1}]', "$[0]", "trailing-data"),
        (b"[{},]", "$[1]", "syntax"),
        (b"[{},,{}]", "$[1]", "syntax"),
        (b"[{},{]", "$[1]", "syntax"),
        (b"[{}", "$", "syntax"),
        (b'[{"a":"x', "$[0].a", "syntax"),
        (b"[{}]]", "$", "trailing-data"),
        (b"[{]}", "$[0]", "syntax"),
        # The duplicate key alone would be the item's own affair.
        (b'[{"a":1,"a":2,}]', "$[0]", "syntax"),
        (b"{}", "$", "not-an-array"),
        (b'"x"', "$", "not-an-array"),
        (b"", "$", "syntax"),
        (b"nonsense", "$", "syntax"),
        (b'\xef\xbb\xbf[{"a":1}]', "$", "byte-order-mark"),
        ('[{"a":1}]'.encode("utf-16"), "$", "not-utf-8"),
        (b"[]", "$", "at least one event"),
        (b" [ \n ] ", "$", "at least one event"),
    ],
)
def test_a_broken_array_is_refused_as_a_whole(body: bytes, path: str, rule: str) -> None:
    assert refusal(body) == (path, rule)


def test_a_broken_array_is_refused_at_its_place_in_the_body() -> None:
    with pytest.raises(MalformedJson) as refused:
        cut('[{"ä":1},\n {"b": ?}]'.encode(), JSON, 100)
    assert refused.value.details == [{"path": "$[1].b", "rule": "syntax", "line": 2, "column": 8, "byte": 18}]


@pytest.mark.parametrize("body", [b"", b"\n \r\n", b"\xef\xbb\xbf{}\n", '{"a":1}\n'.encode("utf-16")])
def test_ndjson_without_a_line_or_in_another_encoding_is_refused(body: bytes) -> None:
    assert refusal(body, NDJSON)[0] == "$"


@pytest.mark.parametrize(
    "item",
    [b'{"a":"\\ud800"}', b'{"a":"\xff"}', b'{"a":1e999}', b'{"a":1,"a":2}', b'{"$a":1}', b"[" * 50 + b"]" * 50, b"7"],
)
def test_an_item_that_breaks_a_rule_of_its_own_leaves_the_array_whole(item: bytes) -> None:
    assert cut(b'[{"b":1},' + item + b',{"c":"\\u00e4"}]', JSON, 100) == [b'{"b":1}', item, b'{"c":"\\u00e4"}']


@pytest.mark.parametrize(
    "body",
    [b"[" + b"{}," * 100 + b"{}]", b"[" + b'"\\ud800",' * 100 + b"{}]", b"{}\n" * 101],
    ids=["", "slow", "lines"],
)
def test_more_items_than_allowed_are_too_large(body: bytes) -> None:
    media_type = JSON if body.startswith(b"[") else NDJSON
    with pytest.raises(PayloadTooLarge):
        cut(body, media_type, 100)
    assert len(cut(body, media_type, 101)) == 101


def test_millions_of_items_are_refused_without_making_them() -> None:
    body = b"[" + b"1," * (4 * 1024 * 1024 - 1) + b"1]"
    began = time.process_time()
    with pytest.raises(PayloadTooLarge):
        cut(body, JSON, 10_000)
    assert time.process_time() - began < 0.5


_VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.text('ab"\\,[]{}:ä\n', max_size=6),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text('a"{,', max_size=3), children, max_size=3)
    ),
    max_leaves=8,
)


_SNIPPETS = st.sampled_from(["", ",", "]", '"', "{", "x"])


@given(st.lists(_VALUES, min_size=1, max_size=6), st.booleans(), st.integers(0, 300), _SNIPPETS)
@settings(max_examples=500, deadline=None)
def test_both_ways_of_cutting_agree_with_a_parser(values: list[Any], ascii_only: bool, at: int, snippet: str) -> None:
    text = json.dumps(values, ensure_ascii=ascii_only, indent=1)
    body = (text[: at % len(text)] + snippet + text[at % len(text) :]).encode()
    with patch.object(batch, "_MAX_COMMAS", -1):
        slow = _attempt(body)
    fast = _attempt(body)
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    assert slow == fast == (parsed if isinstance(parsed, list) else None)


def _attempt(body: bytes) -> Any:
    try:
        return [json.loads(item) for item in cut(body, JSON, 100)]
    except MalformedJson:
        return None
