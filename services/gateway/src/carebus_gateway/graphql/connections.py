"""Cursor connections (https://relay.dev/graphql/connections.htm) over the pages of the claims service.

The service gives one cursor a page, its end. The cursor of the last edge is that one; the cursor of another edge
names its page and itself, and going on from there reads that page once more.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec
import strawberry

from carebus_common.errors import InvalidRequest
from carebus_gateway.graphql.limits import MAX_FIRST
from carebus_gateway.graphql.reading import Record

__all__ = ["Connection", "Edge", "PageInfo", "connection_of"]

T = TypeVar("T")

# Of a page: the cursor after which it begins (None: at the start), and how much of it.
ReadPage = Callable[[str | None, int], Awaitable[Record | None]]

_END: Final = "p."
_WITHIN: Final = "e."
_MAX_CURSOR: Final = 2048


@strawberry.type(description="Where a connection goes on; only forwards.")
class PageInfo:
    has_next_page: bool
    has_previous_page: bool = strawberry.field(description="Whether this page began after a cursor.")
    start_cursor: str | None
    end_cursor: str | None = strawberry.field(description="Pass it as `after`.")


@strawberry.type
class Edge(Generic[T]):
    cursor: str
    node: T


@strawberry.type
class Connection(Generic[T]):
    edges: list[Edge[T]]
    page_info: PageInfo


@dataclass(frozen=True, slots=True)
class _Within:
    """Behind the item `key` of the page after `cursor`."""

    cursor: str | None
    key: str


async def connection_of(
    read: ReadPage, key_of: Callable[[Record], str], node_of: Callable[[Record], T], *, first: int, after: str | None
) -> Connection[T] | None:
    """The page of at most `first` after `after`; None if there is no such list for the caller.

    Raises InvalidRequest for a malformed cursor or one whose place is gone, and what `read` raises.
    """
    if not 1 <= first <= MAX_FIRST:
        raise InvalidRequest(
            "A connection's page is out of bounds.", details=[{"path": "first", "rule": f"1 to {MAX_FIRST}"}]
        )
    place = _read_cursor(after)
    if isinstance(place, _Within):
        found = await read(place.cursor, MAX_FIRST)
        if found is None:
            return None
        items, start = _behind(found["data"], place.key, key_of), place.cursor
        further = len(items) > first or _next_of(found) is not None
        if len(items) <= first:
            end = _next_of(found)
        else:
            items, end = items[:first], None
    else:
        found = await read(place, first)
        if found is None:
            return None
        items, start, end = found["data"], place, _next_of(found)
        further = end is not None
    edges = [
        Edge(cursor=_END + end if end and item is items[-1] else _cursor(start, key_of(item)), node=node_of(item))
        for item in items
    ]
    info = PageInfo(
        has_next_page=further,
        has_previous_page=after is not None,
        start_cursor=edges[0].cursor if edges else None,
        end_cursor=edges[-1].cursor if edges else None,
    )
    return Connection(edges=edges, page_info=info)


def _behind(items: list[Record], key: str, key_of: Callable[[Record], str]) -> list[Record]:
    for place, item in enumerate(items):
        if key_of(item) == key:
            return items[place + 1 :]
    raise _invalid("a cursor whose place is still there: begin anew, or go on from an endCursor")


def _next_of(page: Record) -> str | None:
    info = page.get("page")
    following = info.get("next") if isinstance(info, Mapping) else None
    return following if isinstance(following, str) else None


def _cursor(start: str | None, key: str) -> str:
    return _WITHIN + base64.urlsafe_b64encode(msgspec.json.encode([start, key])).rstrip(b"=").decode()


def _read_cursor(cursor: str | None) -> str | _Within | None:
    if cursor is None:
        return None
    if len(cursor) <= _MAX_CURSOR and cursor.isascii():
        if cursor.startswith(_END):
            return cursor.removeprefix(_END)
        if cursor.startswith(_WITHIN):
            text = cursor.removeprefix(_WITHIN)
            try:
                start, key = msgspec.json.decode(
                    base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=tuple[str | None, str]
                )
            except (binascii.Error, ValueError, msgspec.DecodeError):
                raise _invalid("a cursor from an edge or pageInfo") from None
            return _Within(start, key)
    raise _invalid("a cursor from an edge or pageInfo")


def _invalid(rule: str) -> InvalidRequest:
    return InvalidRequest("The cursor is not valid.", details=[{"path": "after", "rule": rule}])
