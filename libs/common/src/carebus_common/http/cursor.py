"""Opaque cursors, bound to the organization and the query they were made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

__all__ = ["CursorCodec", "Position"]

Position: TypeAlias = Sequence[str | int | float | bool | None]


class CursorCodec:
    """Makes and reads cursors, authenticated with `key`; replicas of a service must share it."""

    def __init__(self, key: str | bytes) -> None:
        self._key = key

    def encode(self, position: Position, *, organization_id: str, query: Mapping[str, object]) -> str:
        """A URL-safe cursor at `position` of the list that `query` (filters, without limit and cursor) describes."""
        raise NotImplementedError

    def decode(
        self, cursor: str, *, organization_id: str, query: Mapping[str, object]
    ) -> list[str | int | float | bool | None]:
        """The position.

        Raises NotFound for another organization's cursor, InvalidRequest for one that is malformed, tampered with
        or of another query.
        """
        raise NotImplementedError
