"""Alerts look at metrics that exist, and each leads to a runbook that says so."""

from __future__ import annotations

import re
from typing import Any, get_args

import prometheus_client
import pytest
import yaml

from carebus_common import metrics
from carebus_common.consumer.gauges import pauses
from carebus_common.consumer.letters import Reason
from carebus_common.consumer.limits import Status

from .test_links import ROOT, anchors

PAGE = ROOT / "docs/operations.md"
(GROUP,) = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
RULES: list[dict[str, Any]] = GROUP["rules"]
LABEL = re.compile(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"')
# What a scraped target has beside the labels of the metric.
TARGET = {"job", "service", "instance"}


def exported() -> dict[str, set[str]]:
    """The name of every sample that a service exports, with its labels."""
    ours = {
        f"{metric._name}_total" if isinstance(metric, prometheus_client.Counter) else metric._name: set(
            metric._labelnames
        )
        for metric in vars(metrics).values()
        if isinstance(metric, prometheus_client.metrics.MetricWrapperBase)
    }
    return ours | {"process_start_time_seconds": set()}


def looked_at(expression: str) -> list[tuple[str, str]]:
    """Each metric of an expression, and its selector."""
    return re.findall(r"\b((?:carebus|process)_\w+)(?:\{([^}]*)\})?", expression)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_looks_at_metrics_that_exist_with_labels_that_they_have(rule: dict[str, Any]) -> None:
    known = exported()
    found = looked_at(rule["expr"])
    assert found
    for name, selector in found:
        assert name in known, name
        assert {label for label, _ in LABEL.findall(selector)} <= known[name] | TARGET
    grouped = set(re.findall(r"by \(([^)]*)\)", rule["expr"]))
    labels = {label for group in grouped for label in re.split(r",\s*", group)}
    assert labels <= {label for name, _ in found for label in known[name]} | TARGET
    named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert named <= labels, "a summary can only name what is left by the grouping"


def test_an_alert_on_a_reason_names_one_that_there_is() -> None:
    nothing = Status(
        connected=True,
        partitions=(),
        in_flight=0,
        stopped_patients=0,
        store_away=False,
        broker_away=False,
        paused=False,
    )
    reasons = {"carebus_consumer_paused": set(pauses(nothing)), "carebus_dead_letters_total": set(get_args(Reason))}
    named = {
        (name, value)
        for rule in RULES
        for name, selector in looked_at(rule["expr"])
        for label, value in LABEL.findall(selector)
        if label == "reason"
    }
    assert {name for name, _ in named} == reasons.keys()
    assert {(name, value) for name, value in named if value not in reasons[name]} == set()
    assert {value for name, value in named if name == "carebus_consumer_paused"} == reasons["carebus_consumer_paused"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_leads_to_the_runbook_that_names_it(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert ROOT / page == PAGE
    assert anchor in anchors(PAGE)
    sections = re.split(r"^(?=#+ )", PAGE.read_text(), flags=re.MULTILINE)
    (section,) = (text for text in sections if anchor == anchor_of(text))
    assert f"`{rule['alert']}`" in section


def anchor_of(text: str) -> str:
    return re.sub(r"[^\w\- ]", "", text.partition("\n")[0].lstrip("# ").lower()).replace(" ", "-")


def test_every_alert_that_a_runbook_names_exists() -> None:
    named = re.findall(r"`(Carebus\w+)`", PAGE.read_text())
    assert sorted(set(named)) == sorted(rule["alert"] for rule in RULES)


def test_prometheus_reads_the_alerts() -> None:
    configured = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounted = {one["source"]: one["target"] for one in compose["services"]["prometheus"]["configs"]}
    assert compose["configs"]["prometheus_alerts"]["file"] == "deploy/prometheus/alerts.yml"
    assert configured["rule_files"] == [mounted["prometheus_alerts"]]
    (job,) = (one for one in configured["scrape_configs"] if one["job_name"] == "carebus")
    assert {"source_labels": ["__meta_dns_name"], "target_label": "service"} in job["relabel_configs"]
