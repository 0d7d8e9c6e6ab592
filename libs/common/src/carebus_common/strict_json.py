"""JSON as a body must be: RFC 8259 in UTF-8, with one reading only, fit for MongoDB.

Refused, with the path and the rule of the first offender in the document:

    rule                      what
    syntax                    anything RFC 8259 does not allow, and an empty body
    trailing-data             more after the value
    byte-order-mark           a BOM
    not-utf-8                 UTF-16, UTF-32 or invalid UTF-8
    lone-surrogate            `\\ud800` without its other half
    not-a-number              NaN, Infinity
    number-overflow           a number beyond a 64-bit float, such as 1e999
    integer-beyond-64-bits    outside -2^63 … 2^63-1
    duplicate-key             a key that its object has already
    forbidden-key             a key that starts with `$` or contains `.` or NUL (MongoDB's operators and paths)
    too-deep                  more levels of objects and arrays than allowed
    not-an-object             where an object was asked for

NUL within a value, `-0.0` and numbers that underflow to 0 are taken as they are.

Two parsers: msgspec decodes, and a walk over what it decoded proves that nothing above is in it. Only where that
proof fails does a slow parser go through the text, token by token, to say what is wrong and where.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import msgspec

from carebus_common.errors import MalformedJson

__all__ = ["MAX_DEPTH", "check_encoding", "parse_object", "parse_value"]

# An event's `data` may have 32 levels, and the event around it is one more.
MAX_DEPTH: Final = 33

_MIN_INT: Final = -(2**63)
_MAX_INT: Final = 2**63 - 1
_decode: Final = msgspec.json.Decoder().decode


def parse_object(body: bytes, *, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The object that `body` holds; raises `MalformedJson`."""
    value = parse_value(body, max_depth=max_depth)
    if not isinstance(value, dict):
        raise _malformed("$", "not-an-object", "", 0)
    return value


def parse_value(body: bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """The value that `body` holds: dict, list, str, int, float, bool or None; raises `MalformedJson`.

    `details` has one entry: `path` (`$.data.a[2].b`), `rule`, and `line`, `column` (in characters) and `byte`,
    which count from 1, 1 and 0. It holds key names, never values.
    """
    try:
        value = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        _Examination(body, max_depth).run()
        # The two parsers disagree; refusing is the safe side.
        raise _malformed("$", "syntax", "", 0) from None
    # An escaped colon would upset the count.
    if _colons(value, max_depth) != body.count(b":") or b"\\u003a" in body or b"\\u003A" in body:
        _Examination(body, max_depth).run()
    return value


def check_encoding(body: bytes) -> None:
    """Raises `MalformedJson` if `body` begins as no UTF-8 text without a byte order mark does."""
    if body.startswith(b"\xef\xbb\xbf"):
        raise _malformed("$", "byte-order-mark", "", 0)
    if body.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in body[:4]:
        raise _malformed("$", "not-utf-8", "", 0)


def _colons(value: Any, max_depth: int) -> int:
    """How many colons a text must have that decodes to `value`, or -1 if something in it needs a closer look.

    Outside strings a colon follows every key and stands nowhere else. A text with a duplicate key therefore has
    more colons than the value it decodes to accounts for.
    """
    colons = 0
    level: list[Any] = [[value]]
    for _ in range(max_depth + 1):
        below: list[Any] = []
        for container in level:
            values = container
            if type(container) is dict:
                names = "\n".join(container)
                if "." in names or "$" in names or "\0" in names:
                    return -1
                colons += len(container) + names.count(":")
                values = container.values()
            for item in values:
                kind = type(item)
                if kind is str:
                    if ":" in item:
                        colons += item.count(":")
                elif kind is dict or kind is list:
                    below.append(item)
                elif kind is int and not _MIN_INT <= item <= _MAX_INT:
                    return -1
        if not below:
            return colons
        level = below
    return -1


_SPACE: Final = re.compile(r"[ \t\n\r]*")
# A string without its closing quote, so that a broken one can be examined up to where it breaks.
_STRING: Final = re.compile(r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*)*')
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)((?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)(?![0-9.eE+-])")
_CONSTANT: Final = re.compile(r"true|false|null")
_NOT_A_NUMBER: Final = re.compile(r"[+-]?(?:NaN|Infinity)")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ESCAPED: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|.)")
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", re.ASCII)
_MAX_LABEL: Final = 64

_MESSAGES: Final = {
    "syntax": "it is not well formed",
    "trailing-data": "there is more after the value",
    "byte-order-mark": "it starts with a byte order mark",
    "not-utf-8": "it is not UTF-8",
    "lone-surrogate": "a string holds half of a surrogate pair",
    "not-a-number": "NaN and Infinity are not JSON",
    "number-overflow": "a number is out of range",
    "integer-beyond-64-bits": "an integer is beyond 64 bits",
    "duplicate-key": "an object has a key twice",
    "forbidden-key": "a key starts with '$' or contains '.' or NUL",
    "too-deep": "it is nested too deeply",
    "not-an-object": "it is not an object",
}


def _malformed(path: str, rule: str, text: str, position: int) -> MalformedJson:
    before = text[:position]
    detail = {
        "path": path,
        "rule": rule,
        "line": before.count("\n") + 1,
        "column": position - (before.rfind("\n") + 1) + 1,
        "byte": len(before.encode("utf-8", "surrogateescape")),
    }
    return MalformedJson(f"The body is not acceptable JSON: {_MESSAGES[rule]}.", details=[detail])


def _label(key: str) -> str:
    if _PLAIN_KEY.fullmatch(key):
        return f".{key}"
    short = key if len(key) <= _MAX_LABEL else key[:_MAX_LABEL] + "…"
    return f"[{json.dumps(short)}]"


@dataclass(slots=True)
class _Open:
    """A container that is not closed yet: where its path ends now, and an object's keys so far (None: an array)."""

    keys: set[str] | None
    label: str = ""
    index: int = 0


@dataclass(slots=True)
class _Examination:
    """The slow parser: `run` returns if the text is acceptable and raises `MalformedJson` for the first offender."""

    body: bytes
    max_depth: int
    text: str = ""
    at: int = 0
    open: list[_Open] = field(default_factory=list)

    def run(self) -> None:
        check_encoding(self.body)
        # Bytes that are not UTF-8 become lone surrogates, so that an offender before them is still found first.
        self.text = self.body.decode("utf-8", "surrogateescape")
        self._space()
        self._value()
        while self.open:
            self._next()
        if self.at < len(self.text):
            self._refuse("trailing-data")

    def _refuse(self, rule: str, position: int | None = None) -> NoReturn:
        at = self.at if position is None else position
        if rule in ("syntax", "trailing-data") and _SURROGATE.match(self.text, at):
            rule = "not-utf-8"
        path = "$" + "".join(level.label for level in self.open)
        raise _malformed(path, rule, self.text, at) from None

    def _space(self) -> None:
        matched = _SPACE.match(self.text, self.at)
        if matched:
            self.at = matched.end()

    def _take(self, char: str) -> bool:
        """Step over `char` and the space behind it, if it is there."""
        if not self.text.startswith(char, self.at):
            return False
        self.at += 1
        self._space()
        return True

    def _next(self) -> None:
        """The rest of the innermost container up to its next value, or its end."""
        level = self.open[-1]
        level.label = ""
        if self._take("}" if level.keys is not None else "]"):
            self.open.pop()
            return
        if level.index and not self._take(","):
            self._refuse("syntax")
        if level.keys is not None:
            self._key(level, level.keys)
        else:
            level.label = f"[{level.index}]"
        level.index += 1
        self._value()

    def _key(self, level: _Open, keys: set[str]) -> None:
        start = self.at
        if not self.text.startswith('"', start):
            self._refuse("syntax")
        key = json.loads(self._string())
        level.label = _label(key)
        if key in keys:
            self._refuse("duplicate-key", start)
        keys.add(key)
        if key.startswith("$") or "." in key or "\0" in key:
            self._refuse("forbidden-key", start)
        self._space()
        if not self._take(":"):
            self._refuse("syntax")

    def _value(self) -> None:
        """Step over a scalar, or open a container."""
        char = self.text[self.at : self.at + 1]
        if char in ("{", "["):
            if len(self.open) == self.max_depth:
                self._refuse("too-deep")
            self.open.append(_Open(set() if char == "{" else None))
            self.at += 1
        elif char == '"':
            self._string()
        elif char == "-" or char.isdecimal():
            self._number()
        elif constant := _CONSTANT.match(self.text, self.at):
            self.at = constant.end()
        else:
            self._refuse("not-a-number" if _NOT_A_NUMBER.match(self.text, self.at) else "syntax")
        self._space()

    def _number(self) -> None:
        number = _NUMBER.match(self.text, self.at)
        if number is None:
            self._refuse("not-a-number" if _NOT_A_NUMBER.match(self.text, self.at) else "syntax")
        token = number.group()
        if not number.group(1):
            # Python refuses to convert thousands of digits, and 20 are too many already.
            if len(token) > 20 or not _MIN_INT <= int(token) <= _MAX_INT:
                self._refuse("integer-beyond-64-bits")
        elif float(token) in (float("inf"), float("-inf")):
            self._refuse("number-overflow")
        self.at = number.end()

    def _string(self) -> str:
        """Step over a string and return its token, with the quotes."""
        start = self.at
        matched = _STRING.match(self.text, start)
        end = matched.end() if matched else start
        token = self.text[start:end]
        if not token.isascii() and (bad := _SURROGATE.search(token)):
            self._refuse_surrogate(start, token, bad.start())
        if "\\u" in token:
            self._refuse_surrogate(start, token, len(token))
        if not self.text.startswith('"', end):
            self._refuse("syntax", end)
        self.at = end + 1
        return token + '"'

    def _refuse_surrogate(self, start: int, token: str, bad_bytes_at: int) -> None:
        """Refuse an escaped surrogate without its other half, or what is not UTF-8, whichever comes first."""
        high: tuple[int, int] | None = None
        for escape in _ESCAPED.finditer(token, 0, bad_bytes_at):
            code = int(escape.group(1), 16) if escape.group(1) else 0
            if high is not None:
                if 0xDC00 <= code <= 0xDFFF and escape.start() == high[1]:
                    high = None
                    continue
                break
            if 0xDC00 <= code <= 0xDFFF:
                high = escape.span()
                break
            if 0xD800 <= code <= 0xDBFF:
                high = escape.span()
        if high is not None:
            self._refuse("lone-surrogate", start + high[0])
        if bad_bytes_at < len(token):
            self._refuse("not-utf-8", start + bad_bytes_at)
