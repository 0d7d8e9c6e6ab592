"""For tests on real parts: the `stack` fixture's parts and topics to work on."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from carebus_local.parts import StackUrls, running_parts

__all__ = ["create_topic", "eventually", "random_name", "stack_for_tests"]

_DOCKER_SOCKET = "/var/run/docker.sock"


@asynccontextmanager
async def stack_for_tests() -> AsyncIterator[StackUrls]:
    """The parts for a test run: those the environment names, else containers where a Docker engine answers, else
    children of this process with their data in a temporary directory. Raises LocalError.

    Every run has its own, so two at once do not meet.
    """
    given = {
        name: os.environ.get(name) for name in ("CAREBUS_KAFKA_BOOTSTRAP", "CAREBUS_MONGO_URL", "CAREBUS_REDIS_URL")
    }
    if not all(given.values()) and await asyncio.to_thread(_docker_answers):
        with ExitStack() as containers:
            yield await asyncio.to_thread(_start_containers, containers, given)
        return
    with tempfile.TemporaryDirectory(prefix="carebus-test-") as scratch:
        async with running_parts(Path(scratch), usual_ports=False) as parts:
            yield parts.urls


async def create_topic(bootstrap: str, name: str, partitions: int = 12) -> None:
    """A topic of one replica; returns when every partition has a leader. Raises aiokafka's errors."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # noqa: PLC0415
    from aiokafka.errors import for_code  # noqa: PLC0415

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        answer = await admin.create_topics([NewTopic(name, partitions, 1)])
        for _, code, *_ in answer.topic_errors:
            if code:
                raise for_code(code)(name)
        async with asyncio.timeout(15):
            while True:
                (topic,) = await admin.describe_topics([name])
                if len(topic["partitions"]) == partitions and all(p["leader"] >= 0 for p in topic["partitions"]):
                    return
                await asyncio.sleep(0.02)
    finally:
        await admin.close()


async def eventually(look: Callable[[], Any], seconds: float = 15) -> Any:
    """What `look`, a function or coroutine function, returns once that is true; asks every 20 ms.

    Fails with what it returned or raised last.
    """
    last: object = None
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            found = look()
            last = result = await found if inspect.isawaitable(found) else found
            if result:
                return result
        except Exception as error:
            last = error
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s; last: {last!r}")


def random_name(prefix: str) -> str:
    """A name nobody else uses, good for a topic, a consumer group, a database and an organization."""
    return f"{prefix}-{secrets.token_hex(6)}"


def _docker_answers() -> bool:
    if not os.environ.get("DOCKER_HOST") and not _connects(_DOCKER_SOCKET):
        return False
    try:
        docker = importlib.import_module("docker")
    except ImportError:
        return False
    try:
        client = docker.from_env(timeout=2)
    except docker.errors.DockerException:
        return False
    try:
        return bool(client.ping())
    except Exception:  # Whatever keeps it from answering, there is no engine to use.
        return False
    finally:
        client.close()


def _connects(path: str) -> bool:
    """Asked first, since the engine's client leaks its socket where nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        return probe.connect_ex(path) == 0


def _start_containers(containers: ExitStack, given: dict[str, str | None]) -> StackUrls:
    from testcontainers.kafka import KafkaContainer  # noqa: PLC0415
    from testcontainers.mongodb import MongoDbContainer  # noqa: PLC0415
    from testcontainers.redis import RedisContainer  # noqa: PLC0415

    bootstrap, mongo_url, redis_url = given.values()
    if not bootstrap:
        kafka = containers.enter_context(KafkaContainer("apache/kafka:4.4.0").with_kraft())
        bootstrap = kafka.get_bootstrap_server()
    if not mongo_url:
        mongo = containers.enter_context(MongoDbContainer("mongo:8.0").with_command("--replSet rs0"))
        mongo.exec(["mongosh", "--eval", "rs.initiate()"])
        mongo_url = f"{mongo.get_connection_url()}/?directConnection=true"
    if not redis_url:
        redis = containers.enter_context(RedisContainer("valkey/valkey:9"))
        redis_url = f"redis://{redis.get_container_host_ip()}:{redis.get_exposed_port(6379)}/0"
    return StackUrls(bootstrap, mongo_url, redis_url)
