"""The list of metrics is the documentation, so it is complete, and labels stay few."""

from __future__ import annotations

import prometheus_client
from prometheus_client.metrics import MetricWrapperBase

from carebus_common import metrics

FORBIDDEN_LABELS = {"organization", "organization_id", "patient", "patient_id", "event_id", "path", "subject"}


def listed() -> dict[str, MetricWrapperBase]:
    return {name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)}


def test_every_metric_is_exported_prefixed_and_free_of_unbounded_labels() -> None:
    assert set(listed()) <= set(metrics.__all__)
    for metric in listed().values():
        assert metric._name.startswith("carebus_")
        assert metric._documentation.endswith(".")
        assert FORBIDDEN_LABELS.isdisjoint(metric._labelnames)


def test_a_type_is_counted_under_its_canonical_name_or_as_other() -> None:
    assert metrics.bounded_type("LAB_RESULT") == metrics.bounded_type("lab-result") == "lab-result"
    assert metrics.bounded_type("made.up.by-a-sender") == "other"


def test_the_metrics_can_be_scraped() -> None:
    metrics.EVENTS_ACCEPTED.labels("other").inc()
    assert b"carebus_events_accepted_total" in prometheus_client.generate_latest()
