"""The three parts Carebus stands on: Kafka, a MongoDB-compatible store, Valkey.

A part whose URL is in the environment is used as it is and none is started: `CAREBUS_KAFKA_BOOTSTRAP`,
`CAREBUS_MONGO_URL`, `CAREBUS_REDIS_URL`.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from carebus_local import kafka, store, valkey
from carebus_local.errors import StartFailed
from carebus_local.ports import Ports
from carebus_local.program import Check
from carebus_local.state import clean_up, lock
from carebus_local.supervisor import Supervisor

__all__ = [
    "PARTS",
    "USUAL_PORTS",
    "Parts",
    "Site",
    "StackUrls",
    "running_parts",
    "start_kafka",
    "start_store",
    "start_valkey",
    "together",
    "without_password",
]

PARTS: Final = ("kafka", "store", "valkey")

# Where tools look first; a checkout that comes second gets free ones.
USUAL_PORTS: Final = {"kafka": 9092, "kafka-controller": 9093, "store": 27017, "valkey": 6379}
_GIVEN_BY: Final = {"kafka": "CAREBUS_KAFKA_BOOTSTRAP", "store": "CAREBUS_MONGO_URL", "valkey": "CAREBUS_REDIS_URL"}
_GIVEN_DEADLINE_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class StackUrls:
    """Where the parts answer: Kafka's bootstrap servers, the store's and Valkey's URL."""

    kafka_bootstrap: str
    mongo_url: str
    redis_url: str

    def as_env(self) -> dict[str, str]:
        """As the `CAREBUS_*` variables a service reads."""
        return {
            "CAREBUS_KAFKA_BOOTSTRAP": self.kafka_bootstrap,
            "CAREBUS_MONGO_URL": self.mongo_url,
            "CAREBUS_REDIS_URL": self.redis_url,
        }


@dataclass(frozen=True, slots=True)
class Site:
    """What the parts are started with: where their data goes, which ports they get, what the environment gives."""

    state_dir: Path
    ports: Ports
    supervisor: Supervisor
    environ: Mapping[str, str]
    # The usual ports first; tests, of which many run at once, take free ones from the start.
    usual_ports: bool = True

    def port(self, name: str) -> int:
        """The port of a part (kafka, kafka-controller, store, valkey), held from now on. Raises LocalError."""
        return self.ports.reserve(name, USUAL_PORTS[name] if self.usual_ports else None)

    def given(self, name: str) -> str | None:
        """The URL the environment gives for a part."""
        return self.environ.get(_GIVEN_BY[name]) or None

    def urls(self) -> StackUrls:
        """Where the parts will answer; known before they do. Raises LocalError."""
        return StackUrls(
            self.given("kafka") or kafka.bootstrap(self.port("kafka")),
            self.given("store") or store.url(self.port("store")),
            self.given("valkey") or valkey.url(self.port("valkey")),
        )


async def start_kafka(site: Site) -> None:
    """Returns once a broker is registered. Raises LocalError."""
    given = site.given("kafka")
    if given:
        return await _use(site.supervisor, "kafka", given, lambda: kafka.check(given))
    program = await kafka.program(site.state_dir, site.port("kafka"), site.port("kafka-controller"))
    return await site.supervisor.start(program)


async def start_store(site: Site) -> None:
    """Returns once it is the primary of its replica set. Raises LocalError."""
    given = site.given("store")
    if given:
        return await _use(site.supervisor, "store", given, lambda: store.check(given))
    return await site.supervisor.start(store.program(site.state_dir, site.port("store")))


async def start_valkey(site: Site) -> None:
    """Returns once it answers PING. Raises LocalError."""
    given = site.given("valkey")
    if given:
        return await _use(site.supervisor, "valkey", given, lambda: valkey.check(given))
    return await site.supervisor.start(valkey.program(site.state_dir, site.port("valkey")))


@dataclass(frozen=True, slots=True)
class Parts:
    """Running parts. A test takes one away with `supervisor.stop("kafka")`, gives it back with
    `supervisor.start_again("kafka")`, at the same address and with the same data, or kills `supervisor.pid("kafka")`.
    """

    urls: StackUrls
    supervisor: Supervisor


@asynccontextmanager
async def running_parts(
    state_dir: Path, *, environ: Mapping[str, str] | None = None, usual_ports: bool = True
) -> AsyncIterator[Parts]:
    """All three parts, started at once; stopped at the end. `environ` defaults to the process's. Raises LocalError."""
    with lock(state_dir):
        await asyncio.to_thread(clean_up, state_dir)
        ports = Ports(state_dir)
        supervisor = Supervisor(state_dir)
        site = Site(state_dir, ports, supervisor, os.environ if environ is None else environ, usual_ports)
        try:
            await together(start_kafka(site), start_store(site), start_valkey(site))
            yield Parts(site.urls(), supervisor)
        finally:
            await supervisor.stop_all()
            ports.release()


async def together(*awaitables: Coroutine[Any, Any, None]) -> None:
    """Wait for all; the first failure cancels the others, waits for them to clean up, and is raised."""
    tasks = [asyncio.create_task(awaitable) for awaitable in awaitables]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _use(supervisor: Supervisor, name: str, url: str, check: Check) -> None:
    """Wait for a part that was given by its URL, and watch it. Raises StartFailed."""
    why = "it was not asked"
    try:
        async with asyncio.timeout(_GIVEN_DEADLINE_SECONDS):
            while True:
                try:
                    await check()
                    break
                except Exception as error:  # Whatever a check raises is its way of saying no.
                    why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                    await asyncio.sleep(0.2)
    except TimeoutError:
        where = without_password(url)
        raise StartFailed(name, f"it was given as {where}, which does not answer ({why})") from None
    supervisor.watch(name, "part", without_password(url), check)


def without_password(url: str) -> str:
    """The URL as it may be shown and stored."""
    return re.sub(r"//[^@/]*@", "//***@", url)
