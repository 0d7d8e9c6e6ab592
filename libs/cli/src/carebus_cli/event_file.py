"""Events as a user hands them in: one JSON object, an array of them, or NDJSON."""

from __future__ import annotations

from typing import Any

import msgspec

from carebus_cli.sender import Outgoing
from carebus_common.contracts.event import new_event_id

__all__ = ["NotEvents", "parse_events"]


class NotEvents(Exception):
    """The text is no JSON object, array or NDJSON."""


def parse_events(text: bytes) -> list[Outgoing]:
    """One item per event, its `place` from 0. An event without an eventId gets one, so that a repeat is a duplicate.

    Only what the order needs is looked at: whether an event is valid is ingest's to say, so a faulty array item
    or NDJSON line is passed on as it is. Raises NotEvents if there is nothing, or no such form.
    """
    text = text.strip()
    if not text:
        raise NotEvents("there are no events in it")
    return [_outgoing(place, item) for place, item in enumerate(_items(text))]


def _items(text: bytes) -> list[bytes]:
    if text.startswith(b"["):
        try:
            raw = msgspec.json.decode(text, type=list[msgspec.Raw])
            # One line each: an item of an array may be spread over many.
            return [msgspec.json.format(bytes(item), indent=-1) for item in raw]
        except msgspec.DecodeError as error:
            raise NotEvents(f"it starts as a JSON array but is none: {_reason(error)}") from None
    if not text.startswith(b"{"):
        raise NotEvents("it starts neither as a JSON object nor as an array")
    try:
        return [msgspec.json.format(text, indent=-1)]
    except msgspec.DecodeError:
        return [line for line in text.splitlines() if line.strip()]


def _outgoing(place: int, item: bytes) -> Outgoing:
    try:
        event: Any = msgspec.json.decode(item)
    except (msgspec.DecodeError, UnicodeDecodeError):
        event = None
    if not isinstance(event, dict):
        return Outgoing(place, "", "", item)
    if "eventId" not in event:
        rest = item.lstrip()[1:].lstrip()
        comma = b"" if rest.startswith(b"}") else b","
        item = b'{"eventId":"%s"%s%s' % (str(new_event_id()).encode(), comma, rest)
    return Outgoing(place, str(event.get("patientId", "")), str(event.get("type", "")), item)


def _reason(error: msgspec.DecodeError) -> str:
    # The parser's own words may quote the text; where it stopped is enough.
    _, found, byte = str(error).partition("(byte ")
    return f"malformed at byte {byte.rstrip(')')}" if found else "malformed"
