"""What may be shown of a payload without its values. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from carebus_common.errors import MalformedJson
from carebus_common.strict_json import parse_value

__all__ = ["MASK", "as_it_is", "diff", "mask", "masked_payload", "parsed", "shown_headers", "text_or_base64"]

MASK: Final = "•••"

# Deeper than any event may be; what serializes an answer gives up at a few hundred levels.
_MAX_DEPTH: Final = 64
_MAX_DIFF: Final = 200
_SHOWN_HEADERS: Final = frozenset({"traceparent", "organizationId", "schemaVersion"})
_SHOWN_PREFIXES: Final = ("ce_", "dlq.")


def mask(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """The value's structure and keys: texts are `MASK`, numbers 0, booleans false, null stays null."""
    if isinstance(value, dict):
        return {key: mask(item, depth - 1) for key, item in value.items()} if depth else MASK
    if isinstance(value, list):
        return [mask(item, depth - 1) for item in value] if depth else MASK
    if value is None:
        return None
    if isinstance(value, bool):
        return False
    return 0 if isinstance(value, int | float) else MASK


def masked_payload(payload: bytes | None) -> Any:
    """The masked JSON of a record's value; `MASK` for what is no JSON, None for no value."""
    if payload is None:
        return None
    try:
        return mask(msgspec.json.decode(payload))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return MASK


def parsed(payload: bytes | None) -> Any:
    """The JSON of a record's value, if it has one reading only; else None."""
    try:
        return parse_value(payload or b"", max_depth=_MAX_DEPTH)
    except MalformedJson:
        return None


def as_it_is(payload: bytes | None) -> tuple[Any, str | None]:
    """The value and how it is written: `json` if it parses to one reading, else `base64`; None for no value."""
    if payload is None:
        return None, None
    try:
        return parse_value(payload, max_depth=_MAX_DEPTH), "json"
    except MalformedJson:
        return base64.b64encode(payload).decode(), "base64"


def text_or_base64(content: bytes | None) -> tuple[str | None, str | None]:
    if content is None:
        return None, None
    try:
        return content.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(content).decode(), "base64"


def shown_headers(headers: Iterable[Any]) -> list[dict[str, str | None]]:
    """Every header's name, and the values of those that are ours; another one's may hold anything."""
    return [
        {"name": str(name), "value": text_of(content) if _is_ours(str(name)) else None} for name, content in headers
    ]


def _is_ours(name: str) -> bool:
    return name in _SHOWN_HEADERS or name.startswith(_SHOWN_PREFIXES)


def text_of(content: bytes | None) -> str | None:
    return None if content is None else content.decode(errors="replace")


def diff(before: Any, after: Any) -> list[dict[str, str]]:
    """What was changed where, without the values: `{path, op}` with op add, remove or replace; paths are JSON pointers.

    At most 200 entries, and then one with the op `more`.
    """
    found: list[dict[str, str]] = []
    waiting = [("", before, after)]
    while waiting:
        path, old, new = waiting.pop()
        if isinstance(old, dict) and isinstance(new, dict):
            found += [{"path": _below(path, key), "op": "remove"} for key in old if key not in new]
            found += [{"path": _below(path, key), "op": "add"} for key in new if key not in old]
            waiting += [(_below(path, key), old[key], new[key]) for key in reversed(new) if key in old]
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            waiting += [(_below(path, str(n)), old[n], new[n]) for n in reversed(range(len(new)))]
        # 1, 1.0 and true are equal in Python and are not the same JSON.
        elif type(old) is not type(new) or old != new:
            found.append({"path": path, "op": "replace"})
        if len(found) > _MAX_DIFF:
            return [*found[:_MAX_DIFF], {"path": "", "op": "more"}]
    return found


def _below(path: str, key: str) -> str:
    return f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
