"""Strict JSON: what is refused, where, and that both parsers agree with a third one."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from carebus_common import strict_json
from carebus_common.errors import MalformedJson
from carebus_common.strict_json import parse_object, parse_value

DEEP = 500


def refusal(body: bytes, max_depth: int = strict_json.MAX_DEPTH) -> dict[str, Any]:
    with pytest.raises(MalformedJson) as refused:
        parse_value(body, max_depth=max_depth)
    (detail,) = refused.value.details
    return dict(detail)


@pytest.mark.parametrize(
    ("body", "path", "rule"),
    [
        (b'{"a":1,"a":2}', "$.a", "duplicate-key"),
        (b'{"a" :1, "a" :2}', "$.a", "duplicate-key"),
        (b'{"a":1,"\\u0061":2}', "$.a", "duplicate-key"),
        (b'{"data":{"a":[{},{},{"b":1,"b":2}]}}', "$.data.a[2].b", "duplicate-key"),
        # The colon in the string that the second key throws away makes up for nothing.
        (b'{"a":":","a":1}', "$.a", "duplicate-key"),
        (b'{"a":"\\u003a","a":""}', "$.a", "duplicate-key"),
        # An escaped colon is none in the text, and one more in the value.
        (b'{"a":1,"a":2,"b":"\\u003a"}', "$.a", "duplicate-key"),
        (b'{"a":1,"a":2,"b":"\\u003A"}', "$.a", "duplicate-key"),
        (b'{"a":{"b":1,"c":":"},"a":{}}', "$.a", "duplicate-key"),
        (b'{"":1,"":2}', '$[""]', "duplicate-key"),
        (b'{"a":NaN}', "$.a", "not-a-number"),
        (b'{"a":[1,Infinity]}', "$.a[1]", "not-a-number"),
        (b'{"a":-Infinity}', "$.a", "not-a-number"),
        (b'{"a":1e999}', "$.a", "number-overflow"),
        (b'{"a":-1E400}', "$.a", "number-overflow"),
        (b'{"a":"\\ud800"}', "$.a", "lone-surrogate"),
        (b'{"a":"\\udc00"}', "$.a", "lone-surrogate"),
        (b'{"a":"\\ud800\\ud800\\udc00"}', "$.a", "lone-surrogate"),
        (b'{"a":"\\ud800x\\udc00"}', "$.a", "lone-surrogate"),
        (b'{"\\ud800":1}', "$", "lone-surrogate"),
        (b'\xef\xbb\xbf{"a":1}', "$", "byte-order-mark"),
        ('{"a":1}'.encode("utf-16"), "$", "not-utf-8"),
        ('{"a":1}'.encode("utf-16-le"), "$", "not-utf-8"),
        ('{"a":1}'.encode("utf-16-be"), "$", "not-utf-8"),
        ('{"a":1}'.encode("utf-32"), "$", "not-utf-8"),
        ('{"a":1}'.encode("utf-32-be"), "$", "not-utf-8"),
        (b'{"a":["\xff"]}', "$.a[0]", "not-utf-8"),
        (b'{"a":"\xed\xa0\x80"}', "$.a", "not-utf-8"),
        (b'{"a":"\xc0\x80"}', "$.a", "not-utf-8"),
        (b'{"a":1}\xff', "$", "not-utf-8"),
        (b'{"a":9223372036854775808}', "$.a", "integer-beyond-64-bits"),
        (b'{"a":-9223372036854775809}', "$.a", "integer-beyond-64-bits"),
        (b'{"a":[0,' + b"1" * 5000 + b"]}", "$.a[1]", "integer-beyond-64-bits"),
        (b'{"eventId":{"$ne":null}}', '$.eventId["$ne"]', "forbidden-key"),
        (b'{"a":{"b.c":1}}', '$.a["b.c"]', "forbidden-key"),
        (b'{"a\\u0000b":1}', '$["a\\u0000b"]', "forbidden-key"),
        (b'{"\\u0024where":1}', '$["$where"]', "forbidden-key"),
        (b"[" * DEEP + b"]" * DEEP, "$" + "[0]" * 33, "too-deep"),
        (b"[" * 1_000_000, "$" + "[0]" * 33, "too-deep"),
        (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "$" + ".a" * 33, "too-deep"),
        (b'{"a":1} x', "$", "trailing-data"),
        (b'{"a":1}{"a":1}', "$", "trailing-data"),
        (b"", "$", "syntax"),
        (b"  ", "$", "syntax"),
        (b'{"a":1,}', "$", "syntax"),
        (b'{"a":[1,]}', "$.a[1]", "syntax"),
        (b'{"a":[1 2]}', "$.a", "syntax"),
        (b'{"a":01}', "$.a", "syntax"),
        (b'{"a":.5}', "$.a", "syntax"),
        (b"{'a':1}", "$", "syntax"),
        (b'{"a":"\\x"}', "$.a", "syntax"),
        (b'{"a":"\x01"}', "$.a", "syntax"),
        (b'{"a":"unfinished', "$.a", "syntax"),
        (b'{"a":tru}', "$.a", "syntax"),
        (b'{"a":1 // comment\n}', "$", "syntax"),
    ],
)
def test_an_offender_is_refused_with_its_path_and_rule(body: bytes, path: str, rule: str) -> None:
    found = refusal(body)
    assert (found["rule"], found["path"]) == (rule, path)


@pytest.mark.parametrize(
    ("body", "rule", "path"),
    [
        (b'{"a":NaN,"b":1,"b":2}', "not-a-number", "$.a"),
        (b'{"b":1,"b":2,"a":NaN}', "duplicate-key", "$.b"),
        (b'{"b":1,"b":2,', "duplicate-key", "$.b"),
        (b'{"b":"\xff","$a":1}', "not-utf-8", "$.b"),
        (b'{"$a":1,"b":"\xff"}', "forbidden-key", '$["$a"]'),
        (b'["\\ud800\xff"]', "lone-surrogate", "$[0]"),
        (b'["\xff\\ud800"]', "not-utf-8", "$[0]"),
        (b'["\\ud800\x01"]', "lone-surrogate", "$[0]"),
    ],
)
def test_the_first_offender_of_the_document_is_the_one_named(body: bytes, rule: str, path: str) -> None:
    found = refusal(body)
    assert (found["rule"], found["path"]) == (rule, path)


def test_a_refusal_says_line_column_and_byte() -> None:
    found = refusal('{"é": 1,\n  "ü": ?}'.encode())
    assert (found["line"], found["column"], found["byte"]) == (2, 8, 18)


def test_a_refusal_never_holds_a_value_and_a_key_only_short_and_escaped() -> None:
    long_key = "k\r\n" * 100
    body = json.dumps({long_key: {"x": "Canary Jane"}}).encode()[:-1] + b',"x":"Canary Jane",}'
    with pytest.raises(MalformedJson) as refused:
        parse_value(body.replace(b'{"x"', b'{"y":1,"y":2,"x"'))
    said = refused.value.message + json.dumps(refused.value.details)
    assert "Canary" not in said
    assert "\n" not in refused.value.details[0]["path"]
    assert len(refused.value.details[0]["path"]) < 250


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b' {"a": [1, -0.0, 1.5e3, true, false, null, "x"]}\r\n\t', {"a": [1, -0.0, 1500.0, True, False, None, "x"]}),
        (b'{"a":"\\u0000","b":"\xc2\x80"}', {"a": "\0", "b": "\x80"}),
        (b'{"a":9223372036854775807,"b":-9223372036854775808}', {"a": 2**63 - 1, "b": -(2**63)}),
        (b'{"a":1e-400}', {"a": 0.0}),
        (b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}),
        (b'{"a:b":"c:d","e":"f\\":\\"g"}', {"a:b": "c:d", "e": 'f":"g'}),
        (b'{"a":"\\u003a","b":"\\\\u003a"}', {"a": ":", "b": "\\u003a"}),
        (b'{"US$":1,"a\\nb":2}', {"US$": 1, "a\nb": 2}),
        (b'"text"', "text"),
        (b"7", 7),
    ],
)
def test_what_is_proper_json_is_taken_as_it_is(body: bytes, value: Any) -> None:
    parsed = parse_value(body)
    assert parsed == value
    assert repr(parsed) == repr(value)


def test_the_depth_allowed_is_exact() -> None:
    assert parse_value(b"[" * 33 + b"]" * 33)
    assert refusal(b"[" * 34 + b"]" * 34)["rule"] == "too-deep"
    assert parse_value(b'[{"a":1}]', max_depth=2)
    assert refusal(b'[{"a":[]}]', max_depth=2) == {
        "path": "$[0].a",
        "rule": "too-deep",
        "line": 1,
        "column": 7,
        "byte": 6,
    }


@pytest.mark.parametrize("body", [b"[]", b'"{}"', b"null", b"1"])
def test_an_object_is_asked_for_and_something_else_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedJson) as refused:
        parse_object(body)
    assert refused.value.details[0]["rule"] == "not-an-object"
    assert parse_object(b"{}") == {}


class _Refused(Exception):
    pass


def _reference(body: bytes) -> Any:
    """The same rules on Python's own parser, which knows none of them; ValueError where a text breaks one."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        if len(set(keys)) != len(keys):
            raise _Refused("duplicate")
        if any(key.startswith("$") or "." in key or "\0" in key for key in keys):
            raise _Refused("key")
        return dict(items)

    def integer(digits: str) -> int:
        if len(digits) > 25 or not -(2**63) <= int(digits) < 2**63:
            raise _Refused("integer")
        return int(digits)

    def real(digits: str) -> float:
        if math.isinf(float(digits)):
            raise _Refused("overflow")
        return float(digits)

    def constant(_: str) -> NoReturn:
        raise _Refused("constant")

    def depth(value: Any) -> int:
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        if isinstance(value, list):
            return 1 + max(map(depth, value), default=0)
        return 0

    text = body.decode("utf-8")
    value = json.loads(text, object_pairs_hook=pairs, parse_int=integer, parse_float=real, parse_constant=constant)
    if re.search("[\ud800-\udfff]", repr_of_strings(value)) or depth(value) > strict_json.MAX_DEPTH:
        raise _Refused("surrogate or depth")
    return value


def repr_of_strings(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(key + repr_of_strings(item) for key, item in value.items())
    if isinstance(value, list):
        return "".join(map(repr_of_strings, value))
    return value if isinstance(value, str) else ""


_KEYS = st.sampled_from(["a", "b", "a:", ":", "$a", "a$", "a.b", "\0", "", "é", '"', "\\", "\n", "\\u003a"])
_TEXTS = _KEYS | st.text(max_size=5)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(allow_nan=True, allow_infinity=True) | _TEXTS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(_KEYS | _TEXTS, children, max_size=4),
    max_leaves=12,
)
_SNIPPETS = st.sampled_from(
    [b'"a":1,', b',"a":1', b'"a" :":",', b"\\u003a", b"\\ud800", b"\\udc00", b"\xff", b"\xed\xa0\x80", b"1e999",
     b"9223372036854775808", b"NaN", b"-", b".", b"e", b"0", b'"', b"\\", b":", b",", b"{", b"}", b"[", b"]", b" ",
     b"\n", b"\x00", b"\x01", b"\xef\xbb\xbf", b"\\u0000", b"$", b"null", b"[[[[[[[[[[[[[[[[[[[[[[[["]
)  # fmt: skip


@st.composite
def _bodies(draw: st.DrawFn) -> bytes:
    """Texts that are JSON or nearly so: a value's text with snippets put in and bytes taken out."""
    value = draw(_VALUES)
    body = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1]))).encode(
        "utf-8", "surrogatepass"
    )
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        skipped = draw(st.integers(0, 2))
        body = body[:at] + draw(_SNIPPETS | st.just(b"")) + body[at + skipped :]
    return body


@given(_bodies())
@example(b'{"a":0,"a":1,"b":"\\u003a"}')
@example(b'{"a":":","b":{"a":1,"a":":"}}')
@settings(max_examples=1500, deadline=None)
def test_the_parser_agrees_with_a_reference(body: bytes) -> None:
    try:
        expected = _reference(body)
    except (_Refused, ValueError, RecursionError):
        found = refusal(body)
        assert found["path"].startswith("$")
        return
    assert repr(parse_value(body)) == repr(expected)


@given(_bodies())
@settings(max_examples=700, deadline=None)
def test_the_slow_parser_alone_agrees_with_a_reference(body: bytes) -> None:
    try:
        _reference(body)
    except (_Refused, ValueError, RecursionError):
        with pytest.raises(MalformedJson):
            strict_json._Examination(body, strict_json.MAX_DEPTH).run()
        return
    strict_json._Examination(body, strict_json.MAX_DEPTH).run()
