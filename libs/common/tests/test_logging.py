"""Logs are one line per entry and never hold a patient's data."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
import structlog
from pymongo.errors import DuplicateKeyError, ServerSelectionTimeoutError

from carebus_common.errors import Conflict
from carebus_common.logging import configure, get_logger, patient_hash
from carebus_common.settings import LogSettings

CANARY = "Jane Canary"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield io.StringIO()
    root.handlers, root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_entry_is_one_line_of_json_with_its_context(stream: io.StringIO) -> None:
    configure(LogSettings(), service="ingest", stream=stream)
    with structlog.contextvars.bound_contextvars(request_id="r1", organization_id="org-a"):
        get_logger("carebus.test").info("event-accepted", event_id="e1", count=3)
    (entry,) = lines(stream)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "event": "event-accepted",
        "level": "info",
        "logger": "carebus.test",
        "service": "ingest",
        "request_id": "r1",
        "organization_id": "org-a",
        "event_id": "e1",
        "count": 3,
    }


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("value", ["a\r\nlevel=error forged", "a\x1b[31m", "a\u2028b", "a\x85b", "a\x00b", "\ud800"])
def test_a_value_with_line_breaks_stays_on_its_line(stream: io.StringIO, log_format: Any, value: str) -> None:
    configure(LogSettings(log_format=log_format), service="ingest", stream=stream)
    get_logger("carebus.test").info("event-accepted", subject=value, nested={"k": [value]})
    logging.getLogger("uvicorn.error").warning("stdlib %s", value)
    text = stream.getvalue()
    assert len(text.splitlines()) == 2
    assert "\x1b[31m" not in text


def test_stdlib_loggers_write_the_same_entries(stream: io.StringIO) -> None:
    configure(LogSettings(), service="ingest", stream=stream)
    logging.getLogger("aiokafka.cluster").warning("Topic %s is not available", "medical.events.v1")
    (entry,) = lines(stream)
    assert (entry["event"], entry["level"], entry["logger"], entry["service"]) == (
        "Topic medical.events.v1 is not available",
        "warning",
        "aiokafka.cluster",
        "ingest",
    )


class _Patient(pydantic.BaseModel):
    age: int


def raise_with_values(kind: str) -> None:
    if kind == "pydantic":
        _Patient.model_validate({"age": CANARY})
    if kind == "duplicate":
        raise DuplicateKeyError(f"E11000 duplicate key error dup key: {{ patientId: {CANARY!r} }}")
    if kind == "chain":
        try:
            int(CANARY)
        except ValueError as error:
            raise RuntimeError(CANARY) from error
    if kind == "group":
        raise ExceptionGroup(CANARY, [ValueError(CANARY), KeyError(CANARY)])
    raise KeyError(CANARY)


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("kind", ["pydantic", "duplicate", "chain", "group", "key"])
def test_an_exception_shows_where_and_what_class_but_no_value(stream: io.StringIO, log_format: Any, kind: str) -> None:
    configure(LogSettings(log_format=log_format), service="ingest", stream=stream)
    try:
        raise_with_values(kind)
    except Exception as error:
        get_logger("carebus.test").error("failed", exc_info=error)
        get_logger("carebus.test").exception("failed")
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    text = stream.getvalue()
    assert len(text.splitlines()) == 3
    assert text.count("raise_with_values") == 3
    assert CANARY not in text


def test_the_chain_of_an_exception_is_named(stream: io.StringIO) -> None:
    configure(LogSettings(), service="ingest", stream=stream)
    for kind in ("chain", "group"):
        try:
            raise_with_values(kind)
        except Exception as error:
            get_logger("carebus.test").error("failed", exc_info=error)
    chain, group = lines(stream)
    assert chain["error"] == "RuntimeError <- ValueError"
    assert group["error"] == "ExceptionGroup[ValueError, KeyError]"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connect call failed"),
        ServerSelectionTimeoutError("db:27017: refused"),
        Conflict("Changed."),
    ],
)
def test_an_exception_that_names_hosts_only_may_speak(stream: io.StringIO, error: Exception) -> None:
    configure(LogSettings(), service="ingest", stream=stream)
    get_logger("carebus.test").error("failed", exc_info=error)
    assert str(error).partition(",")[0] in lines(stream)[0]["error"]


def test_drivers_that_log_whole_documents_at_debug_do_not(stream: io.StringIO) -> None:
    configure(LogSettings(log_level="DEBUG"), service="ingest", stream=stream)
    for name in ("pymongo.command", "aiokafka.consumer.fetcher", "faststream", "asyncio"):
        logging.getLogger(name).debug(CANARY)
    logging.getLogger("httpx").info(CANARY)
    get_logger("carebus.test").debug("seen")
    assert [entry["event"] for entry in lines(stream)] == ["seen"]


def test_an_entry_below_the_level_is_left_out(stream: io.StringIO) -> None:
    configure(LogSettings(log_level="WARNING"), service="ingest", stream=stream)
    get_logger("carebus.test").info("hidden")
    get_logger("carebus.test").warning("shown")
    assert [entry["event"] for entry in lines(stream)] == ["shown"]


def test_before_it_is_configured_exceptions_show_no_values_either() -> None:
    program = f"""
from carebus_common.logging import get_logger
secret = {CANARY!r}
try:
    int(secret)
except ValueError:
    get_logger("x").exception("failed")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    output = result.stdout + result.stderr
    assert "failed" in output and CANARY not in output


def test_a_patient_is_the_same_hash_in_every_process_with_the_key(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAREBUS_LOG_HASH_KEY", "k1")
    configure(LogSettings(), service="ingest", stream=stream)
    first = patient_hash("org-a", "p1")
    assert first == patient_hash("org-a", "p1") == "5b6d6df034ecf296"
    assert len({first, patient_hash("org-b", "p1"), patient_hash("org-a", "p2"), patient_hash("org", "-ap1")}) == 4
    monkeypatch.setenv("CAREBUS_LOG_HASH_KEY", "k2")
    configure(LogSettings(), service="ingest", stream=stream)
    assert patient_hash("org-a", "p1") != first


def test_without_a_key_hashes_differ_between_processes() -> None:
    program = "from carebus_common.logging import patient_hash; print(patient_hash('org-a', 'p1'))"
    outputs = {subprocess.check_output([sys.executable, "-c", program]) for _ in range(2)}
    assert len(outputs) == 2
