"""The schemas of known types: what they bind, and what they leave alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from carebus_common import metrics
from carebus_common.contracts.event_types import DATA_SCHEMAS, data_errors


def paths(event_type: str, data: dict[str, Any]) -> list[str]:
    return [".".join(map(str, error["loc"])) for error in data_errors(event_type, data)]


@pytest.mark.parametrize(
    ("event_type", "data", "offending"),
    [
        ("admission", {"location": 7, "ward": ["a"], "encounterId": "e"}, ["data.location", "data.ward"]),
        ("transfer", {"to": {}}, ["data.to"]),
        ("discharge", {"disposition": True}, ["data.disposition"]),
        ("lab-result", {"value": True}, ["data.value"]),
        ("lab-result", {"value": [1]}, ["data.value"]),
        ("LAB_RESULT", {"value": {}}, ["data.value"]),
        ("lab-result", {"referenceRange": {"low": "3", "high": 4}}, ["data.referenceRange.low"]),
        ("lab-result", {"referenceRange": {"low": 5, "high": 3.5}}, ["data.referenceRange"]),
        ("vital-signs", {"heartRate": "80", "oxygenSaturation": 101}, ["data.oxygenSaturation", "data.heartRate"]),
        ("vital-signs", {"heartRate": -1, "bodyTemperature": True}, ["data.heartRate", "data.bodyTemperature"]),
        ("medication-ordered", {"dispenses": 1.5}, ["data.dispenses"]),
        ("treatment-initiated", {"code": "x" * 257}, ["data.code"]),
        ("observation", {"value": {}}, ["data.value"]),
    ],
)  # fmt: skip
def test_every_offending_field_of_a_known_type_is_named(
    event_type: str, data: dict[str, Any], offending: list[str]
) -> None:
    assert sorted(paths(event_type, data)) == sorted(offending)


@pytest.mark.parametrize("event_type", sorted(DATA_SCHEMAS))
def test_what_a_schema_does_not_name_is_left_alone(event_type: str) -> None:
    assert data_errors(event_type, {}) == []
    assert data_errors(event_type, {"somethingElse": {"a": [1]}, "code": None, "description": "x"}) == []


@pytest.mark.parametrize(
    ("event_type", "data"),
    [
        ("lab-result", {"code": "2823-3", "value": 6.1, "unit": "mmol/L", "referenceRange": {"low": 3, "high": 5.1}}),
        ("lab-result", {"value": "Negative", "referenceRange": {"high": 1}}),
        ("VITAL_SIGNS", {"heartRate": 80, "bodyTemperature": 36.6, "oxygenSaturation": 100}),
        ("observation", {"value": True}),
        ("medication-ordered", {"dispenses": 3}),
        ("vitals.recorded", {"heartRate": "eighty"}),
        ("NEW_THING", {"value": {}}),
    ],
)
def test_proper_data_and_unknown_types_pass(event_type: str, data: dict[str, Any]) -> None:
    assert data_errors(event_type, data) == []


def test_the_known_types_are_the_metrics_labels() -> None:
    assert set(DATA_SCHEMAS) == metrics.KNOWN_TYPES


def test_every_schema_can_be_documented() -> None:
    for schema in DATA_SCHEMAS.values():
        assert json.dumps(schema.model_json_schema())
