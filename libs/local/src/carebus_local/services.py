"""The services as child processes: their commands, ports and environment. No service is imported here."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from carebus_local.errors import LocalError
from carebus_local.net import host_and_port
from carebus_local.ports import Ports
from carebus_local.program import Program

__all__ = ["SERVICES", "Planned", "Service", "plan", "program"]


@dataclass(frozen=True, slots=True)
class Service:
    """One service. `needs` are the parts that must be healthy before it is started.

    Replicas share the port (`shared_port`), or each has its own, the first one the preferred.
    """

    name: str
    command: Sequence[str]
    preferred_port: int
    needs: tuple[str, ...]
    shared_port: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"carebus_{name}.main")


# A developer's load is no abuse: limits that no machine of this size reaches.
_NO_RATE_LIMIT: Final = {
    "CAREBUS_RATE_LIMIT_EVENTS_PER_MINUTE": "10000000",
    "CAREBUS_RATE_LIMIT_BYTES_PER_MINUTE": "100000000000",
}

SERVICES: tuple[Service, ...] = (
    Service("gateway", _module("gateway"), 8000, ()),
    Service("ingest", _module("ingest"), 8001, ("kafka", "valkey"), shared_port=True, env=_NO_RATE_LIMIT),
    Service("processor", _module("processor"), 8002, ("kafka", "store")),
    Service("claims", _module("claims"), 8003, ("kafka", "store", "valkey")),
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A replica: `name` is the service's, with a number from the second one on."""

    name: str
    service: Service
    port: int
    management_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def plan(services: Iterable[Service], ports: Ports, replicas: Mapping[str, int]) -> list[Planned]:
    """The replicas of each service (one, unless `replicas` says otherwise), with their ports held.

    Raises LocalError.
    """
    planned = []
    for service in services:
        count = replicas.get(service.name, 1)
        if count < 1:
            raise LocalError(f"at least one {service.name} is needed, not {count}")
        for number in range(1, count + 1):
            name = service.name if number == 1 else f"{service.name}-{number}"
            if number == 1 or service.shared_port:
                port = ports.reserve(service.name, service.preferred_port)
            else:
                port = ports.reserve(name)
            planned.append(Planned(name, service, port, ports.reserve(f"{name}-management")))
    return planned


def program(planned: Planned, shared_env: Mapping[str, str]) -> Program:
    """The replica's program; `shared_env` is what all services are given."""
    own = {"CAREBUS_PORT": str(planned.port), "CAREBUS_MANAGEMENT_PORT": str(planned.management_port)}
    # What answers on a shared port may be another replica; a replica's own sign of life is on its management port.
    live = f"http://127.0.0.1:{planned.management_port}/health/live" if planned.service.shared_port else None

    async def check() -> None:
        if live is not None:
            await ask(live)
        await ask(f"{planned.url}/health")

    return Program(
        name=planned.name,
        kind="service",
        command=planned.service.command,
        url=planned.url,
        check=check,
        env={**shared_env, **planned.service.env, **own},
        # One that crashes is noticed at once; the gateway may wait for the others, and they for the first download.
        start_deadline=timedelta(minutes=10) if not planned.service.needs else timedelta(seconds=60),
        stop_deadline=timedelta(seconds=10),
    )


def environment(urls: Mapping[str, str], jwks: Path, log_format: str) -> dict[str, str]:
    """Where the services find each other and the keys, beside `StackUrls.as_env`."""
    found = {f"CAREBUS_{name.upper()}_URL": url for name, url in urls.items() if name != "gateway"}
    return {
        **found,
        "CAREBUS_PUBLIC_URL": urls["gateway"],
        "CAREBUS_JWKS": str(jwks),
        "CAREBUS_LOG_FORMAT": log_format,
    }


async def ask(url: str) -> None:
    """GET; raises ConnectionError unless the answer is 200, OSError if there is none.

    By hand, so that no proxy of the environment is asked and nothing is imported for it.
    """
    host, port = host_and_port(url)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        path = "/" + url.split("/", 3)[3]
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read(64 * 1024)
        while chunk := await reader.read(64 * 1024):
            answer += chunk
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise ConnectionError(f"it answers {b''.join(status).decode() or 'nothing'}{_reasons(body)}")


def _reasons(body: bytes) -> str:
    """What an error envelope says is missing."""
    try:
        details = json.loads(body)["error"]["details"]
        return "".join(f", {detail['path']}: {detail['rule']}" for detail in details)
    except (ValueError, KeyError, TypeError):
        return ""
