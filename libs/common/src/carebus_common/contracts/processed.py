"""The processed event: what `medical.events.processed.v1` carries, keyed by the patientId's UTF-8 bytes.

It repeats the event and adds what the processor made of it. It keeps the event's id: a consumer that sees the
same id twice (a re-emission after a crash) has seen the same message twice.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from carebus_common.contracts.event import MedicalEvent

__all__ = ["Flag", "ProcessedEvent", "Processing", "Stay"]


class _Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, frozen=True, extra="ignore")


class Flag(_Wire):
    """One finding outside its range. `kind` is `lab-result` or `vital-signs`; `code` names the measure."""

    kind: Literal["lab-result", "vital-signs"]
    code: str
    value: float
    unit: str | None = None
    low: float | None = None
    high: float | None = None
    direction: Literal["low", "high"]


class Stay(_Wire):
    """The patient's stay after the event: open from an admission to its discharge."""

    stay_id: str
    status: Literal["open", "closed"]
    opened_at: datetime
    closed_at: datetime | None = None
    location: str | None = None
    transfers: int = 0
    treatments: int = 0
    medications: int = 0


class Processing(_Wire):
    """What the processor did: `late` if the event's `ts` is older than the patient's newest before it."""

    status: Literal["processed"] = "processed"
    message: str
    late: bool = False
    flags: tuple[Flag, ...] = ()
    processed_at: datetime


class ProcessedEvent(MedicalEvent):
    """An event with its outcome and the patient's stay after it (`null`: none was ever opened)."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, frozen=True, extra="ignore")

    processing: Processing
    stay: Stay | None = None
