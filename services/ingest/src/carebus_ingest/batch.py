"""Cuts a batch into its items without reading them: pure.

A JSON array is one document: broken anywhere, it is refused as a whole. The lines of NDJSON are documents of their
own, so that a broken one is its own refusal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from carebus_common import strict_json
from carebus_common.errors import InvalidRequest, MalformedJson, PayloadTooLarge

__all__ = ["NDJSON_TYPES", "cut"]

NDJSON_TYPES: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")

# msgspec makes an object of every item before it counts them. This many cost a tenth of a second and 15 MB; what may
# hold more is scanned instead, which stops at the limit.
_MAX_COMMAS: Final = 200_000
_array: Final = msgspec.json.Decoder(list[msgspec.Raw])
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},"]', re.DOTALL)
# Rules of an item that break the array around it too.
_WHOLE: Final = frozenset({"syntax", "trailing-data", "not-a-number"})


def cut(body: bytes, media_type: str, limit: int) -> list[bytes]:
    """The items' texts, in order.

    Raises `MalformedJson` if the body is no array, `InvalidRequest` if there is no item, `PayloadTooLarge` if there
    are more than `limit`.
    """
    strict_json.check_encoding(body)
    items = _lines(body) if media_type in NDJSON_TYPES else _elements(body, limit)
    if not items:
        raise InvalidRequest("The batch is empty.", details=[{"path": "$", "rule": "at least one event"}])
    if len(items) > limit:
        raise _too_many(limit)
    return items


def _lines(body: bytes) -> list[bytes]:
    return [stripped for line in body.split(b"\n") if (stripped := line.strip(b" \t\r"))]


def _elements(body: bytes, limit: int) -> list[bytes]:
    if body.count(b",") <= _MAX_COMMAS:
        try:
            return [bytes(raw) for raw in _array.decode(body)]
        except (msgspec.DecodeError, RecursionError):
            pass  # a broken array, or an item that breaks a rule of its own, such as one with a lone surrogate
    try:
        spans = list(_scan(body, limit))
    except ValueError:
        strict_json.parse_value(body, max_depth=strict_json.MAX_DEPTH + 1)
        raise _not_an_array() from None
    for number, (begin, end) in enumerate(spans):
        _refuse_broken(body, number, begin, end)
    return [body[begin:end] for begin, end in spans]


def _refuse_broken(body: bytes, number: int, begin: int, end: int) -> None:
    """Raises MalformedJson, placed in the whole body, if the item breaks the array around it."""
    item = body[begin:end]
    try:
        strict_json.parse_value(item)
    except MalformedJson as error:
        (detail,) = error.details
        if detail["rule"] in _WHOLE:
            raise MalformedJson(error.message, details=[_within(body, number, begin, detail)]) from None
        # The first offender is the item's own affair; a later one need not be.
        try:
            json.loads(item.decode("utf-8", "surrogateescape"), parse_int=len)
        except json.JSONDecodeError as broken:
            at = len(broken.doc[: broken.pos].encode("utf-8", "surrogateescape"))
            place = _within(body, number, begin, {"path": "$", "rule": "syntax", "byte": at})
            raise MalformedJson("The body is not acceptable JSON: it is not well formed.", details=[place]) from None
        except RecursionError:
            return


def _scan(body: bytes, limit: int) -> Iterator[tuple[int, int]]:
    """Where each element begins and ends. Raises ValueError if there is no array or if it is not balanced."""
    if not body.lstrip(b" \t\r\n").startswith(b"["):
        raise ValueError("no array")
    depth = 0
    begin = body.index(b"[") + 1
    count = 0
    for found in _TOKEN.finditer(body):
        token = found.group()
        if token in (b"[", b"{"):
            depth += 1
        elif token in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                end = found.start()
                if body[found.end() :].strip(b" \t\r\n") or token != b"]":
                    raise ValueError("no end")
                if count or body[begin:end].strip(b" \t\r\n"):
                    yield begin, end
                return
        elif token == b"," and depth == 1:
            count += 1
            if count >= limit:
                raise _too_many(limit)
            yield begin, found.start()
            begin = found.end()
        elif token == b'"':
            raise ValueError("unfinished string")
    raise ValueError("not balanced")


def _within(body: bytes, number: int, begin: int, detail: Mapping[str, Any]) -> dict[str, Any]:
    """An item's detail with its place in the whole body."""
    at = begin + detail["byte"]
    line_begin = body.rfind(b"\n", 0, at) + 1
    return {
        "path": f"$[{number}]{detail['path'][1:]}",
        "rule": detail["rule"],
        "line": body.count(b"\n", 0, at) + 1,
        "column": len(body[line_begin:at].decode(errors="replace")) + 1,
        "byte": at,
    }


def _not_an_array() -> MalformedJson:
    return MalformedJson("The body is not a JSON array.", details=[{"path": "$", "rule": "not-an-array"}])


def _too_many(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The batch has more than {limit} events.")
