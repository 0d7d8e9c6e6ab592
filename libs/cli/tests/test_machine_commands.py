"""`doctor`, `token` and `topics apply`."""

from __future__ import annotations

import json
from pathlib import Path

import jwt
import pytest
from typer.testing import CliRunner

from carebus_cli.main import app
from carebus_local.parts import StackUrls

runner = CliRunner()


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAREBUS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_doctor_prints_findings_as_json_and_nothing_else() -> None:
    answer = runner.invoke(app, ["doctor", "--json"])
    findings = {finding["what"]: finding for finding in json.loads(answer.stdout)}
    assert {"python", "kafka", "store", "valkey", "disk", "memory", "open files", "state", "port 8000"} <= set(findings)
    assert findings["python"]["verdict"] == "ok"
    assert answer.exit_code == int(any(finding["verdict"] == "problem" for finding in findings.values()))


def test_doctor_says_what_to_do_about_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carebus_local.machine._DISK_GIB", 10**9)
    answer = runner.invoke(app, ["doctor"])
    assert answer.exit_code == 1
    assert "make 1e+09 GiB free" in answer.stdout


def test_doctor_tells_of_a_part_that_this_machine_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("CAREBUS_MONGO_URL", "CAREBUS_KAFKA_BOOTSTRAP", "CAREBUS_REDIS_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    findings = {it["what"]: it for it in json.loads(runner.invoke(app, ["doctor", "--json"]).stdout)}
    assert findings["store"]["verdict"] == "problem"
    assert "CAREBUS_MONGO_URL" in findings["store"]["to_do"]


def test_a_token_holds_what_was_asked_for_and_verifies_with_the_key_set(state_dir: Path) -> None:
    asked = ["token", "--org", "org-1", "--role", "patient", "--role", "provider"]
    answer = runner.invoke(app, [*asked, "--subject", "s", "--patient", "p/1", "--ttl", "15m"])
    token = answer.stdout.strip()
    (key,) = jwt.PyJWKSet.from_json((state_dir / "keys" / "jwks.json").read_text()).keys
    claims = jwt.decode(token, key, algorithms=["ES256"], audience="carebus", issuer="carebus")
    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"
    assert claims["exp"] - claims["iat"] == 900
    assert {name: claims[name] for name in ("organizationId", "roles", "sub", "patientId")} == {
        "organizationId": "org-1",
        "roles": ["patient", "provider"],
        "sub": "s",
        "patientId": "p/1",
    }


def test_a_second_token_is_made_with_the_same_key(state_dir: Path) -> None:
    runner.invoke(app, ["token", "--org", "a", "--role", "admin"])
    first = (state_dir / "keys" / "jwks.json").read_text()
    assert json.loads(runner.invoke(app, ["token", "--org", "a", "--role", "admin", "--json"]).stdout)["token"]
    assert (state_dir / "keys" / "jwks.json").read_text() == first
    assert (state_dir / "keys" / "development.pem").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--org", "a", "--role", "superuser"], "unknown role superuser"),
        (["--org", "a b", "--role", "admin"], "no organization id"),
        (["--org", "a", "--role", "admin", "--ttl", "forever"], "such as 15m"),
    ],
)
def test_a_token_no_service_would_accept_is_refused(arguments: list[str], said: str) -> None:
    answer = runner.invoke(app, ["token", *arguments])
    assert answer.exit_code == 2
    assert said in answer.stderr


def test_topics_apply_creates_once_and_then_changes_nothing(stack: StackUrls) -> None:
    runner.invoke(app, ["topics", "apply", "--bootstrap", stack.kafka_bootstrap])
    answer = runner.invoke(app, ["topics", "apply", "--bootstrap", stack.kafka_bootstrap, "--json"])
    assert answer.exit_code == 0
    assert {change["action"] for change in json.loads(answer.stdout)} == {"unchanged"}


def test_topics_apply_without_a_broker_says_which_one_did_not_answer() -> None:
    answer = runner.invoke(app, ["topics", "apply", "--bootstrap", "127.0.0.1:1", "--wait", "0"])
    assert "the broker at 127.0.0.1:1 did not apply the topics" in str(answer.exception)
