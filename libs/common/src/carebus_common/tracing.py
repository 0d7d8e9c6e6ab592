"""W3C trace context (https://www.w3.org/TR/trace-context/), carried from the request through the records."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

__all__ = ["child_of", "configure", "new_traceparent", "parse_traceparent", "traceparent_of"]

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def configure(service: str) -> bool:
    """Set up OpenTelemetry's tracer provider if the environment names an OTLP endpoint; returns whether it did.

    Without one nothing is set up and spans cost nothing. What exports the spans is attached to the provider by
    the deployment, from OpenTelemetry's own environment variables.
    """
    if not (os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")):
        return False
    trace.set_tracer_provider(TracerProvider(resource=Resource.create({"service.name": service})))
    return True


def parse_traceparent(value: str) -> tuple[str, str, str] | None:
    """(trace id, parent id, flags) of a valid `traceparent`, else None.

    A version above 00 may carry further fields and is read by the rules of 00 (section 4.3 of the standard).
    """
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        return None
    version, trace_id, parent_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    return trace_id, parent_id, flags


def new_traceparent() -> str:
    """A new trace: random ids, flag `sampled`."""
    return f"00-{_random_id(16)}-{_random_id(8)}-01"


def child_of(traceparent: str) -> str:
    """The same trace and flags with a new span id; a new trace if `traceparent` is not valid."""
    parsed = parse_traceparent(traceparent)
    if parsed is None:
        return new_traceparent()
    trace_id, _, flags = parsed
    return f"00-{trace_id}-{_random_id(8)}-{flags}"


def traceparent_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The `traceparent` to pass on: a child of the caller's if there is one valid header, else a new one."""
    given = [value for name, value in headers if name == b"traceparent"]
    return child_of(given[0].decode("latin-1")) if len(given) == 1 else new_traceparent()


def _random_id(size: int) -> str:
    while not any(value := os.urandom(size)):
        pass
    return value.hex()
