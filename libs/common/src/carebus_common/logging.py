"""Logs: one line per entry, JSON in production, never a patient's data."""

from __future__ import annotations

from typing import Any

import structlog

from carebus_common.settings import HttpSettings

__all__ = ["configure", "get_logger", "patient_hash"]


def configure(settings: HttpSettings, *, service: str) -> None:
    """Route structlog and stdlib logging (uvicorn, aiokafka, pymongo) to stderr in `settings.log_format`."""
    raise NotImplementedError


def get_logger(name: str) -> Any:
    """A structlog logger: `log.info("event-accepted", event_id=…)`."""
    return structlog.get_logger(name)


def patient_hash(organization_id: str, patient_id: str) -> str:
    """What logs say instead of a patient id: the same for the same patient while the key is the same."""
    raise NotImplementedError
