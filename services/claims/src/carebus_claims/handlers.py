"""What a processed event means to claims: a line in the patient's history, the patient's summary, and claims that move.

Pure: from the state before and the event to the rows after. The runtime writes them, both or neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from carebus_claims.claim_events import moving
from carebus_common.consumer.change import Change, Delivery, State
from carebus_common.contracts.event import canonical_type
from carebus_common.contracts.processed import Flag, ProcessedEvent

__all__ = ["MAX_FLAGS", "MAX_TYPES", "record_history"]

Document = dict[str, Any]

# A patient may have millions of events; the summary keeps this much of them, and the history keeps all.
MAX_FLAGS: Final = 20
MAX_TYPES: Final = 200
# Codes and locations come from senders, who may put 256 KiB there.
_MAX_TEXT: Final = 256


def record_history(state: State | None, delivery: Delivery[ProcessedEvent]) -> Change:
    """The event as a row of `patient_histories`, and the patient's summary with the event counted in.

    Row: `{type, canonicalType, ts, receivedAt, data, processing: {status, message, late, flags, processedAt},
    stay}`. State: `{stay, flags (newest first, at most 20), flagTotal, types: [{type, count}] (at most 200),
    otherTypes, eventTotal, lateTotal, oldestTs, newestTs, firstSeenAt, lastSeenAt}`; `firstSeenAt` and `lastSeenAt` are
    times of receipt. Effect: what the event is to the patient's claims (`claim_events`), if anything.
    """
    event = delivery.event
    stay = event.stay.model_dump(by_alias=True) if event.stay else None
    moves = moving(event, delivery.now)
    return Change(
        row=_history_row(event, stay),
        state=_summary(state or {}, event, stay),
        effects=() if moves is None else (moves,),
    )


def _history_row(event: ProcessedEvent, stay: Document | None) -> Document:
    processing = event.processing
    return {
        "type": event.type,
        "canonicalType": canonical_type(event.type),
        "ts": event.ts,
        "receivedAt": event.received_at,
        "data": event.data,
        "processing": {
            "status": processing.status,
            "message": processing.message,
            "late": processing.late,
            "flags": [flag.model_dump(by_alias=True) for flag in processing.flags],
            "processedAt": processing.processed_at,
        },
        "stay": stay,
    }


def _summary(before: Mapping[str, Any], event: ProcessedEvent, stay: Document | None) -> Document:
    flags = event.processing.flags
    types, other = _counted(before.get("types", ()), before.get("otherTypes", 0), canonical_type(event.type))
    return {
        # The events come in the patient's order, so the stay of the latest one is the current one.
        "stay": _short_stay(stay),
        "flags": [*(_short_flag(event, flag) for flag in flags[:MAX_FLAGS]), *before.get("flags", ())][:MAX_FLAGS],
        "flagTotal": before.get("flagTotal", 0) + len(flags),
        "types": types,
        "otherTypes": other,
        "eventTotal": before.get("eventTotal", 0) + 1,
        "lateTotal": before.get("lateTotal", 0) + event.processing.late,
        "oldestTs": min(before.get("oldestTs", event.ts), event.ts),
        "newestTs": max(before.get("newestTs", event.ts), event.ts),
        "firstSeenAt": before.get("firstSeenAt", event.received_at),
        "lastSeenAt": event.received_at,
    }


def _counted(types: Sequence[Mapping[str, Any]], other: int, counted: str) -> tuple[list[Mapping[str, Any]], int]:
    """The counts with one more of `counted`. A list, for a type may hold a dot and MongoDB's keys may not."""
    after = list(types)
    for place, entry in enumerate(types):
        if entry["type"] == counted:
            after[place] = {"type": counted, "count": entry["count"] + 1}
            return after, other
    if len(types) == MAX_TYPES:
        return after, other + 1
    return [*after, {"type": counted, "count": 1}], other


def _short_flag(event: ProcessedEvent, flag: Flag) -> Document:
    document = flag.model_dump(by_alias=True)
    return {
        **document,
        "code": flag.code[:_MAX_TEXT],
        "unit": flag.unit[:_MAX_TEXT] if flag.unit else flag.unit,
        "eventId": str(event.event_id),
        "ts": event.ts,
    }


def _short_stay(stay: Document | None) -> Document | None:
    if stay is None or not stay["location"] or len(stay["location"]) <= _MAX_TEXT:
        return stay
    return {**stay, "location": stay["location"][:_MAX_TEXT]}
