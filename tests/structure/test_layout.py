"""The rules of the house that a reader relies on and no other tool checks."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 500
SERVICES = ("ingest", "processor", "claims", "gateway")
# What opens a connection, or holds one, when it is called.
CLIENTS = {
    "AIOKafkaAdminClient",
    "AIOKafkaConsumer",
    "AIOKafkaProducer",
    "AsyncClient",
    "AsyncMongoClient",
    "ClientSession",
    "KafkaBroker",
    "MongoClient",
    "Publisher",
    "Redis",
    "client_session",
    "connect",
    "from_pool",
    "from_url",
    "kafka_broker",
}

# Functions that make a client when main calls them.
FOR_MAIN = {"client_session", "connect"}


def written_by_hand() -> Iterator[Path]:
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".js", ".lua"}
    for folder in ("services", "libs", "tests", "bench", "docs", "deploy"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in suffixes and ".venv" not in path.parts and path != ROOT / "docs/asyncapi.yaml":
                yield path
    yield from (path for path in ROOT.iterdir() if path.suffix in suffixes or path.name == "Makefile")


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in written_by_hand()}
    assert len(lengths) > 50, "the walk must find the project"
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_any_module_opens_no_connection_and_needs_no_configuration() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", Path(__file__).with_name("import_everything.py")],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 30, "the walk must find the modules"


@pytest.mark.parametrize("service", SERVICES)
def test_only_main_creates_clients(service: str) -> None:
    found = [
        f"{path.name}:{line} {name}"
        for path in (ROOT / "services" / service / "src").rglob("*.py")
        if path.name != "main.py"
        for name, line in called_names(path)
        if name in CLIENTS
    ]
    assert found == []


def called_names(path: Path) -> Iterator[tuple[str, int]]:
    """What a module calls, outside the functions that are there for main to call."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in FOR_MAIN:
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id, node.lineno
            elif isinstance(node.func, ast.Attribute):
                yield node.func.attr, node.lineno


def test_every_service_has_a_main_which_does_create_its_clients() -> None:
    """Or else the rule above would look for names that nobody uses any more."""
    created = {
        service: {name for name, _ in called_names(ROOT / f"services/{service}/src/carebus_{service}/main.py")}
        & CLIENTS
        for service in SERVICES
    }
    assert all(created.values()), created


# These hold collections: of one tenant, or for the relay, for the operator with the audit's key, and for rebuilding.
CLAIMS_STORES = {
    "audit_trail",
    "claim_queries",
    "claim_store",
    "claim_writes",
    "claims_rebuild",
    "history_rebuild",
    "relay",
    "repository",
    "requests",
}


def test_only_the_stores_of_claims_reach_a_collection() -> None:
    """Everything else goes through `ClaimStore.of(Tenant)`, so that no query can forget the organization."""
    reaching = set()
    for path in (ROOT / "services/claims/src/carebus_claims").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name and name.split(".")[0] == "pymongo" and name != "pymongo.errors" for name in (module, *names)):
                reaching.add(path.stem)
    assert reaching - CLAIMS_STORES == set()
