"""The trace context follows the standard: https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from carebus_common.tracing import child_of, configure, new_traceparent, parse_traceparent, traceparent_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        (VALID, (TRACE, PARENT, "01")),
        (f"00-{TRACE}-{PARENT}-00", (TRACE, PARENT, "00")),
        (f"cc-{TRACE}-{PARENT}-01-what-comes", (TRACE, PARENT, "01")),
        (f"cc-{TRACE}-{PARENT}-01", (TRACE, PARENT, "01")),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"cc-{TRACE}-{PARENT}-01.more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (VALID.upper(), None),
        (VALID + "\n", None),
        (VALID[:-1], None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_by_the_standard(value: str, parsed: tuple[str, str, str] | None) -> None:
    assert parse_traceparent(value) == parsed


def test_a_child_keeps_the_trace_and_gets_a_span_of_its_own() -> None:
    child = parse_traceparent(traceparent_of([(b"host", b"x"), (b"traceparent", VALID.encode())]))
    assert child is not None
    assert (child[0], child[2]) == (TRACE, "01")
    assert child[1] != PARENT


@pytest.mark.parametrize(
    "headers",
    [[], [(b"traceparent", b"nonsense")], [(b"traceparent", b"\xff")], [(b"traceparent", VALID.encode())] * 2],
)
def test_without_one_valid_header_a_new_trace_begins(headers: list[tuple[bytes, bytes]]) -> None:
    parsed = parse_traceparent(traceparent_of(headers))
    assert parsed is not None
    assert parsed[0] != TRACE


def test_new_traces_differ_and_are_valid() -> None:
    values = {new_traceparent() for _ in range(100)} | {child_of("nonsense") for _ in range(100)}
    assert len(values) == 200
    assert all(parse_traceparent(value) for value in values)


def test_nothing_is_set_up_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert configure("ingest") is False


def test_a_provider_is_set_up_with_an_endpoint() -> None:
    program = """
import os
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:4318"
from carebus_common.tracing import configure
from opentelemetry import trace
assert configure("ingest")
print(trace.get_tracer_provider().resource.attributes["service.name"])
"""
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "ingest"


def test_passing_a_trace_on_costs_microseconds() -> None:
    headers = [(b"host", b"x"), (b"traceparent", VALID.encode())]
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(500):
            traceparent_of(headers)
        best = min(best, (time.perf_counter() - began) / 500)
    assert best < 20e-6
