"""No engine runs where these tests run, so the files are held against the specification and against the code."""

from __future__ import annotations

import importlib
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings
from typer.testing import CliRunner

from carebus_cli.topics import app as topics
from carebus_common.contracts.topics import TOPICS
from carebus_local.jars import KAFKA_VERSION

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PARTS: dict[str, dict[str, Any]] = COMPOSE["services"]
BUILT = {name: part["build"]["args"]["SERVICE"] for name, part in PARTS.items() if "args" in part.get("build", {})}
SERVICES = {name: service for name, service in BUILT.items() if service != "cli"}
ONE_SHOT = {
    awaited
    for part in PARTS.values()
    for awaited, wait in part.get("depends_on", {}).items()
    if wait["condition"] == "service_completed_successfully"
}
PORTS = {"gateway": 8000, "ingest": 8001, "processor": 8002, "claims": 8003}
DOCKERFILES = sorted((ROOT / "deploy").rglob("Dockerfile"))


def tool(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def dockerfile_of(part: dict[str, Any]) -> Path:
    build = part["build"]
    return ROOT / str(build["context"]) / str(build.get("dockerfile", "Dockerfile"))


def environment_of(part: dict[str, Any]) -> dict[str, str]:
    environment = part.get("environment", {})
    assert all(isinstance(value, str) for value in environment.values()), "quote numbers and booleans"
    return dict(environment)


def names_known_to(service: str) -> set[str]:
    """The environment variables that the settings classes of a service read."""
    module = importlib.import_module(f"carebus_{service}.settings")
    classes = [thing for thing in vars(module).values() if isinstance(thing, type) and issubclass(thing, BaseSettings)]
    return {
        f"{settings.model_config.get('env_prefix', '')}{field}".upper()
        for settings in classes
        for field in settings.model_fields
    }


def options_of_topics_apply() -> set[str]:
    """The environment variables that `carebus topics apply` reads about the broker."""
    shown = CliRunner().invoke(topics, ["apply", "--help"], env={"COLUMNS": "200"}).output
    return set(re.findall(r"env var: (CAREBUS_KAFKA_\w+)", shown))


def test_the_compose_file_is_valid_by_the_specification() -> None:
    done = subprocess.run(
        [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_hadolint_has_no_complaint(dockerfile: Path) -> None:
    done = subprocess.run([tool("hadolint"), dockerfile], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_image_runs_as_a_numbered_user_on_pinned_bases(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE)[-1:] == ["10001:10001"]
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert bases
    assert [base for base in bases if not re.search(r":\d", base)] == []


@pytest.mark.parametrize("name", PARTS)
def test_every_image_is_pinned_by_a_version(name: str) -> None:
    image = re.sub(r"\$\{\w+:-([^}]+)\}", r"\1", PARTS[name]["image"])
    assert re.search(r":v?\d+\.\d+", image), image


@pytest.mark.parametrize("name", sorted(PARTS.keys() - ONE_SHOT))
def test_every_part_that_stays_up_has_a_health_check(name: str) -> None:
    part = PARTS[name]
    if "build" in part:
        assert re.search(r"^HEALTHCHECK .*\\\n +CMD \[", dockerfile_of(part).read_text(), re.MULTILINE)
        assert "healthcheck" not in part, "the image has its own"
    else:
        assert part["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


def test_what_runs_once_is_not_restarted_after_success_and_has_no_health() -> None:
    assert sorted(ONE_SHOT) == ["mongo-init", "topics"]
    assert {(PARTS[name]["restart"], PARTS[name]["healthcheck"]["disable"]) for name in ONE_SHOT} == {
        ("on-failure", True)
    }


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_contained(name: str) -> None:
    part = PARTS[name]
    assert part["cap_drop"] == ["ALL"]
    assert part["security_opt"] == ["no-new-privileges:true"]
    assert part["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert "privileged" not in part
    # What we build has its user in the Dockerfile.
    assert name in BUILT or re.fullmatch(r"[1-9]\d*:\d+", part["user"])
    assert part.get("read_only") is True or part["image"].startswith("apache/kafka:")


@pytest.mark.parametrize("name", PARTS)
def test_a_part_waits_for_the_health_of_those_it_cannot_start_without(name: str) -> None:
    for awaited, wait in PARTS[name].get("depends_on", {}).items():
        if wait["condition"] == "service_healthy":
            assert "healthcheck" in PARTS[awaited]
        assert awaited in PARTS


def test_only_the_ways_in_are_published_and_on_the_loopback_address_only() -> None:
    published = {name: part["ports"] for name, part in PARTS.items() if "ports" in part}
    assert published.keys() == {"ingest", "gateway", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert {name for name, part in PARTS.items() if "edge" in part["networks"]} == published.keys()
    assert COMPOSE["networks"]["parts"] == {"internal": True}


@pytest.mark.parametrize(("name", "service"), BUILT.items())
def test_every_variable_and_secret_of_a_service_is_one_it_reads(name: str, service: str) -> None:
    given = {variable for variable in environment_of(PARTS[name]) if variable.startswith("CAREBUS_")}
    given |= {secret["target"].upper() for secret in PARTS[name].get("secrets", [])}
    if service == "cli":
        assert given == {"CAREBUS_KAFKA_BOOTSTRAP", "CAREBUS_KAFKA_REPLICATION_FACTOR"} == options_of_topics_apply()
        return
    assert given - names_known_to(service) - {"CAREBUS_SECRETS_DIR"} == set()


def test_ports_agree_between_the_files() -> None:
    for service, port in PORTS.items():
        environment = environment_of(PARTS[service])
        assert environment["CAREBUS_PORT"] == str(port)
        assert environment["CAREBUS_HOST"] == "0.0.0.0"
        assert all(published.endswith(f":{port}") for published in PARTS[service].get("ports", []))
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    scraped = prometheus["scrape_configs"][0]["dns_sd_configs"][0]
    assert sorted(scraped["names"]) == sorted(SERVICES)
    assert {environment_of(PARTS[name])["CAREBUS_MANAGEMENT_PORT"] for name in SERVICES} == {str(scraped["port"])}


@pytest.mark.parametrize("name", PARTS)
def test_every_address_in_a_variable_is_a_part_at_its_port(name: str) -> None:
    ports = {**PORTS, "kafka-1": 9092, "kafka-2": 9092, "kafka-3": 9092}
    for variable, value in environment_of(PARTS[name]).items():
        if variable.startswith("CAREBUS_"):
            for host, port in re.findall(r"(?:^|,|//)([a-z][a-z0-9-]*):(\d+)", value):
                assert (host, int(port)) in ports.items(), variable


def test_no_secret_is_committed_and_none_has_a_default() -> None:
    for part in PARTS.values():
        for variable, value in environment_of(part).items():
            if re.search(r"PASSWORD|SECRET|CREDENTIAL|PRIVATE", variable) and variable != "CAREBUS_SECRETS_DIR":
                assert re.search(r"_FILE$", variable), variable
                assert value.startswith("/run/secrets/")
    assert all(secret.keys() == {"file"} for secret in COMPOSE["secrets"].values())
    ignored = (ROOT / "deploy/secrets/.gitignore").read_text().split()
    assert ignored == ["*", "!.gitignore", "!generate"]


def test_generate_makes_every_secret_once(tmp_path: Path) -> None:
    def generate() -> dict[str, str]:
        subprocess.run([ROOT / "deploy/secrets/generate", tmp_path], check=True, capture_output=True)
        return {path.name: path.read_text() for path in tmp_path.iterdir()}

    first = generate()
    assert {f"deploy/secrets/{name}" for name in first} == {secret["file"] for secret in COMPOSE["secrets"].values()}
    assert len(set(first.values())) == len(first)
    assert all(len(value) >= 48 for value in first.values())
    assert first["mongo_processor_password"] in first["processor_mongo_url"]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    assert generate() == first


def test_every_mounted_file_exists() -> None:
    files = {config["file"] for config in COMPOSE["configs"].values()} - {"deploy/secrets/jwks.json"}
    assert [file for file in files if not (ROOT / file).is_file()] == []
    used = [mount for part in PARTS.values() for mount in part.get("configs", [])]
    assert {mount["source"] for mount in used} == COMPOSE["configs"].keys()


def test_the_replica_set_has_the_members_and_the_users_that_the_urls_name() -> None:
    init = (ROOT / "deploy/mongo/init.js").read_text()
    generate = (ROOT / "deploy/secrets/generate").read_text()
    members = sorted(name for name in PARTS if re.fullmatch(r"mongo-\d", name))
    assert re.findall(r"mongo-\d:27017", init) == [f"{name}:27017" for name in members]
    assert "members=" + ",".join(f"{name}:27017" for name in members) in generate
    assert re.findall(r'"(\w+)", "(\w+)"\]\) \{', init) == [("processor", "claims")]


def test_production_runs_the_kafka_that_the_tests_run() -> None:
    assert {part["image"] for name, part in PARTS.items() if name.startswith("kafka-")} == {
        f"apache/kafka:{KAFKA_VERSION}"
    }


def test_the_topic_definitions_for_other_tools_are_those_of_the_contracts() -> None:
    definitions = yaml.safe_load((ROOT / "deploy/kafka/topics.yaml").read_text())
    assert {definition["name"]: definition["partitions"] for definition in definitions} == {
        topic.name: topic.partitions for topic in TOPICS
    }
