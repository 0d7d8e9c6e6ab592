"""Opaque cursors, bound to the organization and the query they were made for.

base64url( tag of the organization (8 bytes) | tag of the query (8 bytes) | position as JSON | HMAC (16 bytes) ).
The position can be read by its holder, so it holds sort keys and ids and no patient data.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, TypeAlias

import msgspec

from carebus_common.errors import InvalidRequest, NotFound
from carebus_common.settings import HttpSettings

__all__ = ["CursorCodec", "Position"]

Position: TypeAlias = Sequence[str | int | float | bool | None]

_CURSOR: Final = re.compile(r"[A-Za-z0-9_-]{1,1024}")
_TAG: Final = 8
_MAC: Final = 16


class CursorCodec:
    """Makes and reads cursors, sealed with `key`; replicas of a service must share it."""

    def __init__(self, key: str) -> None:
        # A derived key of its own, so that the secret may serve elsewhere too.
        self._key = hmac.digest(key.encode(), b"carebus cursor v1", "sha256")

    @classmethod
    def of(cls, settings: HttpSettings, *, service: str) -> CursorCodec:
        """Sealed with `settings.cursor_key`, else with a key derived from the service's name.

        Anybody can derive the latter and forge a position, which leads nowhere a filter would not: queries are
        scoped to the caller's organization whatever the cursor says.
        """
        return cls(settings.cursor_key.get_secret_value() if settings.cursor_key else f"unsealed {service}")

    def encode(self, position: Position, *, organization_id: str, query: Mapping[str, Any]) -> str:
        """A URL-safe cursor at `position` of the list with the filters `query` (without limit and cursor)."""
        body = self._tag(b"organization", organization_id.encode()) + self._query_tag(query)
        body += msgspec.json.encode(list(position))
        return base64.urlsafe_b64encode(body + self._mac(body)).rstrip(b"=").decode()

    def decode(self, cursor: str, *, organization_id: str, query: Mapping[str, Any]) -> list[Any]:
        """The position.

        Raises NotFound for another organization's cursor, InvalidRequest for one that is malformed, tampered with
        or of another query.
        """
        if not _CURSOR.fullmatch(cursor):
            raise _invalid("a cursor from a list's page.next")
        try:
            raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except binascii.Error:
            raise _invalid("a cursor from a list's page.next") from None
        body, mac = raw[:-_MAC], raw[-_MAC:]
        if len(body) < 2 * _TAG or not hmac.compare_digest(mac, self._mac(body)):
            raise _invalid("a cursor from a list's page.next")
        if body[:_TAG] != self._tag(b"organization", organization_id.encode()):
            raise NotFound("There is no such page.")
        if body[_TAG : 2 * _TAG] != self._query_tag(query):
            raise _invalid("a cursor of a list with the same filters")
        position: list[Any] = msgspec.json.decode(body[2 * _TAG :])
        return position

    def _query_tag(self, query: Mapping[str, Any]) -> bytes:
        return self._tag(b"query", msgspec.json.encode(query, order="sorted"))

    def _tag(self, kind: bytes, value: bytes) -> bytes:
        return hmac.new(self._key, kind + b"\0" + value, sha256).digest()[:_TAG]

    def _mac(self, body: bytes) -> bytes:
        return hmac.new(self._key, b"cursor\0" + body, sha256).digest()[:_MAC]


def _invalid(rule: str) -> InvalidRequest:
    return InvalidRequest("The cursor is not valid.", details=[{"path": "cursor", "rule": rule}])
