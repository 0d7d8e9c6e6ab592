"""Apache Kafka as one KRaft node on 127.0.0.1."""

from __future__ import annotations

import base64
import uuid
from datetime import timedelta
from pathlib import Path

from carebus_local.jars import fetch, find_java, kafka_jars
from carebus_local.net import accepts, host_and_port
from carebus_local.program import Program

__all__ = ["bootstrap", "check", "program"]

_MEMORY = ("-Xms256m", "-Xmx512m")
# The first compiler tier alone halves the time to start and costs a broker this small nothing that was measurable.
_QUICK_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


def bootstrap(port: int) -> str:
    """Its bootstrap servers."""
    return f"127.0.0.1:{port}"


async def program(state_dir: Path, port: int, controller_port: int) -> Program:
    """The broker's program; writes its configuration and, the first time, fetches its jars. Raises LocalError."""
    home = state_dir / "kafka"
    config = _prepare(home, port, controller_port)
    java = find_java()
    # Does not pause if nothing is to be fetched: the broker takes longest and so should be the first to start.
    await fetch()
    address = bootstrap(port)
    return Program(
        name="kafka",
        kind="part",
        command=(
            java,
            *_MEMORY,
            *_QUICK_START,
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
            "-cp",
            ":".join(str(jar) for jar in kafka_jars()),
            "kafka.Kafka",
            str(config),
        ),
        url=address,
        check=lambda: check(address),
        start_deadline=timedelta(seconds=90),
        stop_deadline=timedelta(seconds=20),
    )


async def check(servers: str) -> None:
    """Ask the first server for the cluster's metadata; raises unless a broker is registered and there is a controller.

    On a bare connection: a client leaks its own one when it is cancelled while it starts, as a check may be.
    """
    host, port = host_and_port(servers.partition(",")[0])
    await accepts(f"{host}:{port}")
    from aiokafka.conn import AIOKafkaConnection  # noqa: PLC0415
    from aiokafka.protocol.metadata import MetadataRequest  # noqa: PLC0415

    connection = AIOKafkaConnection(host, port, client_id="carebus-check", request_timeout_ms=3000)
    try:
        await connection.connect()
        metadata = await connection.send(MetadataRequest([]))
    finally:
        connection.close()
    if not metadata.brokers or metadata.controller_id < 0:
        raise ConnectionError("no broker is registered with the controller yet")


def _prepare(home: Path, port: int, controller_port: int) -> Path:
    data = home / "data"
    data.mkdir(parents=True, exist_ok=True)
    meta = data / "meta.properties"
    if not meta.exists():
        # What `kafka-storage format` leaves behind with a static quorum, without a JVM's start for it. A static
        # quorum, because a dynamic one stores its voters' ports in the log and so cannot move to another port.
        meta.write_text(f"version=1\ncluster.id={_random_id()}\nnode.id=1\ndirectory.id={_random_id()}\n")
    config = home / "server.properties"
    # The session timeout is how long a broker that was killed waits at its return for its own ghost to be fenced.
    config.write_text(
        f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=8
log.cleaner.dedupe.buffer.size=16777216
"""
    )
    return config


def _random_id() -> str:
    """A Kafka UUID: 16 random bytes in URL-safe base64. Kafka's tools take a leading `-` for an option."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
