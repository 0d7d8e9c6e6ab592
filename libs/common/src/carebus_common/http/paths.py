"""Routing on the path as it was sent, so that an id may hold `/`, `%`, line breaks or any Unicode.

Servers decode the path before routing; an encoded slash then splits the id that holds it. Here routes match the
undecoded path, and `{patient_id:segment}` decodes one segment.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import Scope

from carebus_common.errors import InvalidRequest

__all__ = ["encode_segment", "percent_decode", "raw_path_of"]

_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


def percent_decode(text: str) -> str:
    """Strictly decoded text. Raises ValueError for a `%` without two hex digits and for bytes that are not UTF-8."""
    if "%" not in text:
        return text
    if _PERCENT.search(text):
        raise ValueError("percent-encoding with two hexadecimal digits")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise ValueError("percent-encoded UTF-8") from None


def encode_segment(value: str) -> str:
    """A value as one path segment: everything but unreserved characters percent-encoded, and `.` and `..` too, which
    clients would resolve."""
    return value.replace(".", "%2E") if value in (".", "..") else quote(value, safe="")


def raw_path_of(scope: Scope) -> str:
    """The path as it was sent, undecoded. Raises InvalidRequest if it is not ASCII."""
    try:
        return (scope.get("raw_path") or quote(scope["path"]).encode()).decode("ascii")
    except UnicodeDecodeError:
        raise InvalidRequest("Malformed path.", details=[{"path": "path", "rule": "ASCII characters"}]) from None


class _Segment(Convertor[str]):
    regex = "[^/]+"

    def convert(self, value: str) -> str:
        try:
            return percent_decode(value)
        except ValueError as error:
            raise InvalidRequest("Malformed path.", details=[{"path": "path", "rule": str(error)}]) from None

    def to_string(self, value: str) -> str:
        return encode_segment(value)


register_url_convertor("segment", _Segment())
