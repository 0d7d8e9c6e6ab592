"""The MongoDB-compatible store: `mongod` on the PATH, else SecantusDB (`secantusd-rs` on the PATH, else its wheel)."""

from __future__ import annotations

import asyncio
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from carebus_local.errors import LocalError
from carebus_local.net import accepts
from carebus_local.program import Program

__all__ = ["check", "find", "program", "url"]

_REPLICA_SET = "rs0"
_NOT_YET_INITIALIZED = 94


def url(port: int) -> str:
    """Where the store this machine has will answer. Raises LocalError if it has none."""
    options = {"mongod": f"replicaSet={_REPLICA_SET}", "secantusd-py": "replicaSet=secantus"}
    return f"mongodb://127.0.0.1:{port}/?{options.get(Path(find()).name, 'directConnection=true')}"


def program(state_dir: Path, port: int) -> Program:
    """The store's program, each kind with data of its own. Raises LocalError if this machine has none."""
    command = find()
    kind = Path(command).name
    home = state_dir / kind
    home.mkdir(parents=True, exist_ok=True)
    address = url(port)

    async def listens_and_is_primary() -> None:
        # A driver that finds nobody there asks again only half a second later.
        await accepts(f"127.0.0.1:{port}")
        if kind == "mongod":
            await asyncio.to_thread(_initiate, port)
        await check(address)

    return Program(
        name="store",
        kind="part",
        command=(*_started_by(command), *_arguments(kind, home, port)),
        url=address,
        check=listens_and_is_primary,
        stop_deadline=timedelta(seconds=20),
    )


def find() -> str:
    """The store's program, in the order of preference. Raises LocalError if this machine has none."""
    beside_python = _beside_python()
    found = (
        shutil.which("mongod")
        or shutil.which("secantusd-rs")
        or (str(beside_python) if beside_python.exists() else shutil.which("secantusd-py"))
    )
    if found is None:
        raise LocalError(
            "no MongoDB-compatible store: neither `mongod` nor `secantusd-rs` is on the PATH and the secantusdb "
            "wheel is not installed. Give CAREBUS_MONGO_URL a replica set to use."
        )
    return found


def _started_by(command: str) -> tuple[str, ...]:
    """The wheel's own server is started with its faults mended; any other one as it is."""
    if Path(command) == _beside_python():
        return (sys.executable, "-m", "carebus_local.embedded_store")
    return (command,)


def _beside_python() -> Path:
    return Path(sys.executable).with_name("secantusd-py")


async def check(address: str) -> None:
    """Ping, and see a primary: without one there are neither transactions nor change streams.

    Raises PyMongo's errors. The driver for threads is asked, in one: the other one leaks its monitor's socket when
    it is cancelled while it connects, as a check may be.
    """
    hello = await asyncio.to_thread(_hello, address)
    if "setName" not in hello or not hello.get("isWritablePrimary", hello.get("ismaster")):
        raise ConnectionError("it answers, but not as the primary of a replica set")


def _arguments(kind: str, home: Path, port: int) -> tuple[str, ...]:
    if kind == "mongod":
        options = {"replSet": _REPLICA_SET, "bind_ip": "127.0.0.1", "dbpath": home, "wiredTigerCacheSizeGB": 0.5}
    else:
        options = {"host": "127.0.0.1", "storage-path": home}
    if kind == "secantusd-py":
        # Naming a file keeps it from reading one of the user's.
        config = home.with_suffix(".toml")
        # The same as --sync-on-commit.
        config.write_text("[storage]\nsync_on_commit = true\n")
        options |= {"config": config, "cache-size": "512M", "log-level": "WARNING"}
    words = tuple(str(word) for name, value in {"port": port, **options}.items() for word in (f"--{name}", value))
    # Without it, a killed store forgets the newest commits although their write concern was journaled.
    return (*words, "--sync-on-commit") if kind == "secantusd-rs" else words


def _hello(address: str) -> dict[str, Any]:
    from pymongo import MongoClient  # noqa: PLC0415

    with MongoClient[dict[str, Any]](address, serverSelectionTimeoutMS=2000, connectTimeoutMS=2000) as client:
        client.admin.command("ping")
        return client.admin.command("hello")


def _initiate(port: int) -> None:
    """Make a fresh `mongod` a replica set of one; tell one whose port changed its new address."""
    from pymongo import MongoClient  # noqa: PLC0415
    from pymongo.errors import OperationFailure  # noqa: PLC0415

    me = {"_id": 0, "host": f"127.0.0.1:{port}"}
    direct = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    with MongoClient[dict[str, Any]](direct, serverSelectionTimeoutMS=2000, connectTimeoutMS=2000) as client:
        try:
            config = client.admin.command("replSetGetConfig")["config"]
        except OperationFailure as error:
            if error.code != _NOT_YET_INITIALIZED:
                raise
            client.admin.command("replSetInitiate", {"_id": _REPLICA_SET, "members": [me]})
            return
        if config["members"][0]["host"] != me["host"]:
            config["members"] = [{**config["members"][0], **me}]
            config["version"] += 1
            client.admin.command("replSetReconfig", config, force=True)
