"""Every service does what its OpenAPI document says, and nothing else: all of schemathesis's checks.

`make fuzz` does the same for long, with other requests each time.
"""

from __future__ import annotations

import json

import pytest

from carebus_local.system import System

from .conftest import DOCUMENTS, EXAMPLES, SERVICES, Report

pytestmark = pytest.mark.timeout(0 if EXAMPLES else 300)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_does_what_its_document_says(reports: dict[str, Report], service: str) -> None:
    report = reports[service]
    document = json.loads(DOCUMENTS[service].read_text())
    print(report.text)
    assert report.code == 0, report.text
    assert report.number(r"Tested: (\d+)") == sum(
        len(item) for path, item in document["paths"].items() if path != "/claims/changes"
    )
    assert report.number(r"(\d+) generated") > 100


def test_graphql_does_what_its_schema_says(reports: dict[str, Report]) -> None:
    report = reports["graphql"]
    print(report.text)
    assert report.code == 0, report.text
    assert report.number(r"(\d+) generated") > 10


def test_nothing_broke_meanwhile(reports: dict[str, Report], system: System) -> None:
    assert {str(status.health) for status in system.status()} == {"healthy"}
    for log in (system.state_dir / "logs").glob("*.log"):
        text = log.read_text(errors="replace")
        assert "request-failed" not in text, log.name
        assert "Traceback" not in text, log.name
