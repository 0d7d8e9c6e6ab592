"""Parts of one's own: broken ones, two sets at once, and a second start on the first one's data."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from pymongo import AsyncMongoClient
from redis.asyncio import Redis

from carebus_local import kafka, valkey
from carebus_local.errors import StartFailed
from carebus_local.parts import Parts, Site, StackUrls, running_parts, start_kafka, start_store, without_password
from carebus_local.ports import Ports
from carebus_local.supervisor import Supervisor
from carebus_local.testing import create_topic, eventually

ROWS = 20


async def write(urls: StackUrls) -> None:
    await create_topic(urls.kafka_bootstrap, "kept", partitions=1)
    async with AIOKafkaProducer(bootstrap_servers=urls.kafka_bootstrap, acks="all") as producer:
        for number in range(ROWS):
            await producer.send_and_wait("kept", b"%d" % number)
    async with AsyncMongoClient[dict[str, Any]](urls.mongo_url, w="majority", journal=True) as client:
        await client["kept"]["rows"].insert_many([{"_id": number} for number in range(ROWS)])
    async with Redis.from_url(urls.redis_url) as redis:
        await redis.set("kept", ROWS)


async def read(urls: StackUrls) -> tuple[list[bytes], int, object]:
    async with AIOKafkaConsumer(
        "kept", bootstrap_servers=urls.kafka_bootstrap, auto_offset_reset="earliest"
    ) as consumer:
        records = [(await consumer.getone()).value for _ in range(ROWS)]
    async with AsyncMongoClient[dict[str, Any]](urls.mongo_url) as client:
        rows = await client["kept"]["rows"].count_documents({})
    async with Redis.from_url(urls.redis_url) as redis:
        return records, rows, await redis.get("kept")


KEPT = ([b"%d" % number for number in range(ROWS)], ROWS, b"20")


async def test_two_sets_start_at_once_and_a_second_start_finds_each_ones_data_at_the_same_addresses(
    tmp_path: Path,
) -> None:
    """Both prefer the usual ports, so one of the two, at least, has to give way."""

    async def first_and_second_run(state_dir: Path) -> StackUrls:
        async with running_parts(state_dir, environ={}) as parts:
            await write(parts.urls)
            first = parts.urls
        async with running_parts(state_dir, environ={}) as parts:
            assert await read(parts.urls) == KEPT
            assert parts.urls == first
            return first

    one, two = await asyncio.gather(first_and_second_run(tmp_path / "one"), first_and_second_run(tmp_path / "two"))
    assert set(one.as_env().values()).isdisjoint(two.as_env().values())


async def test_a_part_that_is_killed_returns_with_its_data(tmp_path: Path) -> None:
    async with running_parts(tmp_path, environ={}, usual_ports=False) as parts:
        await write(parts.urls)
        for name in ("kafka", "store", "valkey"):
            os.kill(parts.supervisor.pid(name), signal.SIGKILL)
        await eventually(lambda: all(s.restarts == 1 and s.health == "healthy" for s in parts.supervisor.status()), 60)
        records, rows, _ = await read(parts.urls)
        assert (records, rows) == KEPT[:2]
        await taken_away_and_given_back(parts)


async def taken_away_and_given_back(parts: Parts) -> None:
    await parts.supervisor.stop("kafka")
    with pytest.raises(OSError, match="Connect call failed"):
        await kafka.check(parts.urls.kafka_bootstrap)
    await parts.supervisor.start_again("kafka")
    await kafka.check(parts.urls.kafka_bootstrap)


async def test_a_broker_that_cannot_start_is_an_error_with_its_reason_and_its_log(tmp_path: Path) -> None:
    data = tmp_path / "kafka" / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=1\ncluster.id=AAAAAAAAAAAAAAAAAAAAAA\nnode.id=2\n")
    ports = Ports(tmp_path)
    supervisor = Supervisor(tmp_path)
    try:
        with pytest.raises(StartFailed) as failure:
            await start_kafka(Site(tmp_path, ports, supervisor, {}, usual_ports=False))
    finally:
        await supervisor.stop_all()
        ports.release()
    told = str(failure.value)
    assert "kafka did not start: it ended with exit code 1" in told
    assert "Stored node id 2" in told
    assert str(tmp_path / "logs" / "kafka.log") in told


async def test_a_part_whose_port_is_taken_meanwhile_says_so(tmp_path: Path) -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartFailed, match="valkey did not start") as failure:
            await Supervisor(tmp_path).start(valkey.program(tmp_path, port))
    assert "Address already in use" in str(failure.value)
    assert str(port) in str(failure.value)


async def test_parts_given_by_the_environment_are_used_and_not_started(stack: StackUrls, tmp_path: Path) -> None:
    async with running_parts(tmp_path, environ=stack.as_env()) as parts:
        assert parts.urls == stack
        await eventually(lambda: [s.health for s in parts.supervisor.status()] == ["healthy"] * 3)
        assert [status.pid for status in parts.supervisor.status()] == [None] * 3


async def test_a_given_part_that_does_not_answer_is_an_error_that_names_it_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carebus_local.parts._GIVEN_DEADLINE_SECONDS", 0.3)
    given = {"CAREBUS_MONGO_URL": "mongodb://carebus:secret@127.0.0.1:1/?replicaSet=rs0"}
    with pytest.raises(StartFailed, match="store did not start: it was given as") as failure:
        async with running_parts(tmp_path, environ=given, usual_ports=False):
            pass
    assert "secret" not in str(failure.value)


async def test_the_status_of_a_given_part_shows_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answers(_address: str) -> None:
        pass

    monkeypatch.setattr("carebus_local.store.check", answers)
    given = {"CAREBUS_MONGO_URL": "mongodb://carebus:secret@db/?replicaSet=rs0"}
    supervisor = Supervisor(tmp_path)
    site = Site(tmp_path, Ports(tmp_path), supervisor, given)
    await start_store(site)
    try:
        assert [status.url for status in supervisor.status()] == ["mongodb://***@db/?replicaSet=rs0"]
    finally:
        await supervisor.stop_all()


def test_a_shown_url_has_no_password() -> None:
    assert without_password("redis://:p%40ss@host:6379/0") == "redis://***@host:6379/0"
    assert without_password("127.0.0.1:9092") == "127.0.0.1:9092"
