"""The MongoDB-compatible store: `mongod` on the PATH, else SecantusDB (`secantusd-rs` on the PATH, else its wheel)."""

from __future__ import annotations

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


def url(port: int) -> str:
    """Where the store this machine has will answer."""
    replica_set = _REPLICA_SET if shutil.which("mongod") else "secantus"
    return f"mongodb://127.0.0.1:{port}/?replicaSet={replica_set}"


def program(state_dir: Path, port: int) -> Program:
    """The store's program. Raises LocalError if this machine has none."""
    command = find()
    if command == shutil.which("mongod"):
        return _mongod(command, state_dir / "mongod", port)
    return _secantus(command, state_dir / "secantus", port)


def find() -> str:
    """The store's program, in the order of preference. Raises LocalError if this machine has none."""
    beside_python = Path(sys.executable).with_name("secantusd-py")
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


async def check(address: str) -> None:
    """Ping, and see a primary: without one there are neither transactions nor change streams.

    Raises PyMongo's errors and OSError.
    """
    hello = await _hello(address)
    if "setName" not in hello or not hello.get("isWritablePrimary", hello.get("ismaster")):
        raise ConnectionError("it answers, but not as the primary of a replica set")


def _mongod(mongod: str, home: Path, port: int) -> Program:
    home.mkdir(parents=True, exist_ok=True)
    address = url(port)

    async def initiated_and_primary() -> None:
        await _initiate(port)
        await check(address)

    return Program(
        name="store",
        kind="part",
        command=(
            mongod,
            *("--replSet", _REPLICA_SET, "--bind_ip", "127.0.0.1", "--port", str(port)),
            *("--dbpath", str(home), "--wiredTigerCacheSizeGB", "0.5"),
        ),
        url=address,
        check=initiated_and_primary,
        stop_deadline=timedelta(seconds=20),
    )


def _secantus(secantusd: str, home: Path, port: int) -> Program:
    home.mkdir(parents=True, exist_ok=True)
    # Naming a file, even an empty one, keeps it from reading one of the user's.
    config = home.with_suffix(".toml")
    config.touch()
    address = url(port)

    async def listens_and_is_primary() -> None:
        # A driver that finds nobody there asks again only half a second later.
        await accepts(f"127.0.0.1:{port}")
        await check(address)

    return Program(
        name="store",
        kind="part",
        command=(
            secantusd,
            *("--config", str(config), "--host", "127.0.0.1", "--port", str(port)),
            *("--storage-path", str(home), "--cache-size", "512M", "--log-level", "WARNING"),
        ),
        url=address,
        check=listens_and_is_primary,
        stop_deadline=timedelta(seconds=20),
    )


async def _hello(address: str) -> dict[str, Any]:
    from pymongo import AsyncMongoClient  # noqa: PLC0415

    async with AsyncMongoClient[dict[str, Any]](
        address, serverSelectionTimeoutMS=2000, connectTimeoutMS=2000
    ) as client:
        await client.admin.command("ping")
        return await client.admin.command("hello")


async def _initiate(port: int) -> None:
    """Make a fresh `mongod` a replica set of one; tell one whose port changed its new address."""
    from pymongo import AsyncMongoClient  # noqa: PLC0415
    from pymongo.errors import OperationFailure  # noqa: PLC0415

    me = {"_id": 0, "host": f"127.0.0.1:{port}"}
    await accepts(f"127.0.0.1:{port}")
    direct = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    async with AsyncMongoClient[dict[str, Any]](direct, serverSelectionTimeoutMS=2000) as client:
        try:
            config = (await client.admin.command("replSetGetConfig"))["config"]
        except OperationFailure as error:
            if error.code != _NOT_YET_INITIALIZED:
                raise
            await client.admin.command("replSetInitiate", {"_id": _REPLICA_SET, "members": [me]})
            return
        if config["members"][0]["host"] != me["host"]:
            config["members"] = [{**config["members"][0], **me}]
            config["version"] += 1
            await client.admin.command("replSetReconfig", config, force=True)


_NOT_YET_INITIALIZED = 94
