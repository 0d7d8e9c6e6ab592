"""What the routes answer: camelCase, times in RFC 3339 UTC with millisecond precision."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from carebus_common.contracts.processed import Flag, Stay

__all__ = ["EventStatus", "EventView", "PatientView", "SummaryFlag", "event_status", "event_view", "patient_view"]

Document = Mapping[str, Any]


class _View(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, frozen=True)


class EventStatus(_View):
    """That an event was processed, and nothing of what it says."""

    event_id: str
    status: Literal["processed"] = "processed"
    type: str
    ts: datetime
    received_at: datetime
    processed_at: datetime
    late: bool = Field(description="Older than the patient's newest event before it.")


class EventView(EventStatus):
    """An event, what the processor made of it, and the patient's stay after it."""

    patient_id: str
    message: str
    flags: tuple[Flag, ...]
    data: dict[str, Any]
    stay: Stay | None


class SummaryFlag(Flag):
    """A flag with the event that raised it."""

    event_id: str
    ts: datetime


class PatientView(_View):
    """A patient at a glance. Flags are the newest 20, newest first; the times seen are times of receipt."""

    patient_id: str
    stay: Stay | None = Field(description="The current stay, or the last one if it is closed.")
    flags: tuple[SummaryFlag, ...]
    flag_total: int
    counts: dict[str, int] = Field(description="Events by canonical type, of at most 200 types.")
    other_types: int = Field(description="Events of further types.")
    event_total: int
    late_total: int
    oldest_ts: datetime
    newest_ts: datetime
    first_seen_at: datetime
    last_seen_at: datetime


def event_status(row: Document) -> EventStatus:
    return EventStatus(**_status_fields(row))


def event_view(row: Document) -> EventView:
    processing = row["processing"]
    return EventView(
        **_status_fields(row),
        patient_id=row["patientId"],
        message=processing["message"],
        flags=processing["flags"],
        data=row["data"],
        stay=row["stay"],
    )


def patient_view(patient_id: str, state: Document) -> PatientView:
    types = sorted(state["types"], key=lambda entry: (-entry["count"], entry["type"]))
    return PatientView(
        patient_id=patient_id,
        stay=state["stay"],
        flags=state["flags"],
        flag_total=state["flagTotal"],
        counts={entry["type"]: entry["count"] for entry in types},
        other_types=state["otherTypes"],
        event_total=state["eventTotal"],
        late_total=state["lateTotal"],
        oldest_ts=state["oldestTs"],
        newest_ts=state["newestTs"],
        first_seen_at=state["firstSeenAt"],
        last_seen_at=state["lastSeenAt"],
    )


def _status_fields(row: Document) -> dict[str, Any]:
    return {
        "event_id": row["eventId"],
        "type": row["type"],
        "ts": row["ts"],
        "received_at": row["receivedAt"],
        "processed_at": row["processing"]["processedAt"],
        "late": row["processing"]["late"],
    }
