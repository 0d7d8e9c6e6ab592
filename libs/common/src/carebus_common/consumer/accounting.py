"""What a committed plan did, in metrics and logs: counts, places and classes of errors, never what an event holds."""

from __future__ import annotations

from collections import Counter
from typing import Any

from carebus_common import metrics
from carebus_common.consumer.lanes import Lane
from carebus_common.consumer.letters import letter_id
from carebus_common.consumer.plan import Fate, Plan
from carebus_common.consumer.rows import ParkedPatient
from carebus_common.logging import get_logger, patient_hash

__all__ = ["account"]

log = get_logger(__name__)


def account(group: str, plan: Plan[Any]) -> None:
    """Count the fates of the plan's records; log what a person may have to look at."""
    fates: Counter[tuple[Fate, str]] = Counter()
    for settled in plan.settled.values():
        for one in settled:
            fates[one.fate, getattr(one.record.event, "type", "")] += 1
            if one.fate is Fate.CONFLICT or one.fate is Fate.UNDECODABLE:
                log.warning(f"event-{one.fate.name.lower()}", group=group, source=letter_id(one.record.position))
    for (fate, event_type), count in fates.items():
        match fate:
            case Fate.DUPLICATE:
                metrics.DUPLICATES.labels(group).inc(count)
            case Fate.CONFLICT:
                metrics.CONFLICTS.labels(group).inc(count)
            case Fate.UNDECODABLE:
                metrics.UNDECODABLE.labels(group).inc(count)
            case _:
                kind = metrics.bounded_type(event_type)
                metrics.EVENTS_PROCESSED.labels(group, kind, fate.name.lower().replace("_", "-")).inc(count)
    for letter in plan.writes.dead_letters:
        metrics.DEAD_LETTERS.labels(group, letter["reason"]).inc()
    for update in plan.writes.letters:
        metrics.REDRIVES.labels(group, update.fields["outcome"]["status"]).inc()
    for lane, patient in plan.parked.items():
        if patient is not None and patient.failure is not None and patient.last_failed_at is not None:
            _tell(group, lane, patient)


def _tell(group: str, lane: Lane[Any], patient: ParkedPatient) -> None:
    failure = patient.failure or {}
    entry = {
        "group": group,
        "organization": lane.key[1],
        "patient": patient_hash(patient.organization_id, patient.patient_id),
        "error": failure.get("class"),
        "where": failure.get("where"),
        "fingerprint": failure.get("fingerprint"),
    }
    if patient.status == "publishing":
        log.error("event-dead-lettered", dead_letter=patient.dead_letter, **entry)
    elif patient.attempts:
        metrics.RETRIES.labels(group).inc()
        log.warning("event-failed", attempts=patient.attempts, **entry)
