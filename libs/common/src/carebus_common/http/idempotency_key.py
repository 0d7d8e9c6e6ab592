"""The `Idempotency-Key` header (draft-ietf-httpapi-idempotency-key-header)."""

from __future__ import annotations

import re
from typing import Final

from carebus_common.errors import InvalidRequest

__all__ = ["KEY_PATTERN", "parse_key"]

# A structured field string (RFC 8941, 3.3.3), or the bare characters that most senders write.
_QUOTED: Final = re.compile(rb'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BARE: Final = re.compile(rb"[\x21\x23-\x7e][\x20-\x7e]*")
_MAX_LENGTH: Final = 255
# The same for documents.
KEY_PATTERN: Final = r'^(?:"(?:[ !#-\[\]-~]|\\["\\])+"|[!#-~][ -~]*)$'


def parse_key(value: bytes | None) -> str | None:
    """The key in an `Idempotency-Key` header's value, without the quotes; raises `InvalidRequest`."""
    if value is None:
        return None
    quoted = _QUOTED.fullmatch(value)
    key = re.sub(rb"\\(.)", rb"\1", quoted[1]) if quoted else value
    if not 1 <= len(key) <= _MAX_LENGTH or not (quoted or _BARE.fullmatch(value)):
        raise InvalidRequest(
            "The Idempotency-Key breaks a rule.",
            details=[{"path": "idempotency-key", "rule": f"1 to {_MAX_LENGTH} printable ASCII characters"}],
        )
    return key.decode("ascii")
