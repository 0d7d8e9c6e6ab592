"""W3C trace context, carried from the request through the records."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["child_of", "configure", "new_traceparent", "parse_traceparent", "traceparent_of"]


def configure(service: str) -> None:
    """Set up OpenTelemetry if an OTLP endpoint is configured; otherwise nothing."""
    raise NotImplementedError


def parse_traceparent(value: str) -> tuple[str, str, str] | None:
    """(trace id, parent id, flags) of a valid `traceparent`, else None."""
    raise NotImplementedError


def new_traceparent() -> str:
    raise NotImplementedError


def child_of(traceparent: str) -> str:
    """The same trace with a new span id."""
    raise NotImplementedError


def traceparent_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The `traceparent` to pass on: a child of the caller's if that is valid, else a new one."""
    raise NotImplementedError
