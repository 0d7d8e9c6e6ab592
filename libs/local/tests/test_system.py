"""The whole, with stand-ins for the services and the test run's parts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio

from carebus_local import services, state
from carebus_local.errors import LocalError, StartFailed, StateDirBusy
from carebus_local.parts import StackUrls
from carebus_local.services import Service
from carebus_local.system import System, running
from carebus_local.testing import eventually

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
STAND_INS = tuple(replace(service, command=STAND_IN) for service in services.SERVICES)


@pytest.fixture(autouse=True)
def given_parts(stack: StackUrls, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, url in stack.as_env().items():
        monkeypatch.setenv(name, url)


@pytest_asyncio.fixture
async def system(tmp_path: Path, given_parts: None) -> AsyncIterator[System]:
    async with running(tmp_path, processors=2, ingest=2, service_list=STAND_INS) as system:
        yield system


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


async def test_every_service_is_given_its_port_the_parts_the_keys_and_the_others(
    system: System, stack: StackUrls
) -> None:
    for name in ("gateway", "ingest", "processor", "claims"):
        env = await asyncio.to_thread(get, f"{system.urls[name]}/env")
        assert system.urls[name] == f"http://127.0.0.1:{env['CAREBUS_PORT']}"
        assert env["CAREBUS_KAFKA_BOOTSTRAP"] == stack.kafka_bootstrap
        assert env["CAREBUS_MONGO_URL"] == stack.mongo_url
        assert env["CAREBUS_REDIS_URL"] == stack.redis_url
        assert env["CAREBUS_INGEST_URL"] == system.urls["ingest"]
        assert env["CAREBUS_PROCESSOR_URL"] == system.urls["processor"]
        assert env["CAREBUS_CLAIMS_URL"] == system.urls["claims"]
        assert env["CAREBUS_PUBLIC_URL"] == system.urls["gateway"]
        assert env["CAREBUS_LOG_FORMAT"] == "console"
        assert ("CAREBUS_RATE_LIMIT_EVENTS_PER_MINUTE" in env) == (name == "ingest")
        assert json.loads(Path(env["CAREBUS_JWKS"]).read_text())["keys"]


async def test_a_token_verifies_with_the_keys_the_services_are_given(system: System) -> None:
    token = system.token("org-1", ["event-sender", "admin"])
    header = jwt.get_unverified_header(token)
    (key,) = jwt.PyJWKSet.from_json((system.state_dir / "keys" / "jwks.json").read_text()).keys
    claims = jwt.decode(token, key, algorithms=["ES256"], audience="carebus", issuer="carebus")
    assert (header["typ"], header["kid"]) == ("at+jwt", key.key_id)
    assert (claims["organizationId"], claims["roles"]) == ("org-1", ["admin", "event-sender"])


async def test_replicas_of_ingest_share_a_port_and_those_of_the_processor_do_not(system: System) -> None:
    urls = {status.name: status.url for status in system.status()}
    assert urls["ingest-2"] == urls["ingest"]
    assert urls["processor-2"] != urls["processor"]

    seen: set[int] = set()

    async def both_answered() -> bool:
        seen.add((await asyncio.to_thread(get, f"{urls['ingest']}/env"))["pid"])
        return len(seen) == 2

    await eventually(both_answered)


async def test_a_killed_service_is_started_again_and_the_state_file_tells(system: System) -> None:
    killed = system.supervisor.pid("claims")
    os.kill(killed, signal.SIGKILL)

    def recorded() -> state.Status | None:
        now = state.read(system.state_dir)
        assert now is not None
        (claims,) = [status for status in now.processes if status.name == "claims"]
        return claims if claims.health == "healthy" and claims.restarts == 1 else None

    claims = await eventually(recorded)
    assert claims is not None
    assert claims.pid not in (None, killed)


async def test_a_full_disk_and_a_closed_pipe_do_not_end_the_supervision(tmp_path: Path) -> None:
    def closed(_name: str, _what: str) -> None:
        raise BrokenPipeError

    async with running(tmp_path, service_list=STAND_INS, on_progress=closed) as system:
        (tmp_path / "state.json.new").mkdir()  # As if no state could be written any more.
        os.kill(system.supervisor.pid("claims"), signal.SIGKILL)
        await eventually(
            lambda: [(s.restarts, s.health) for s in system.status() if s.name == "claims"] == [(1, "healthy")]
        )
        (tmp_path / "state.json.new").rmdir()


async def test_an_unhealthy_service_is_told_with_what_it_misses(system: System) -> None:
    await asyncio.to_thread(get, f"{system.urls['claims']}/sicken")
    status = await eventually(lambda: next((s for s in system.status() if s.health == "unhealthy"), None))
    assert status is not None
    assert status.name == "claims"
    assert status.detail == "ConnectionError: it answers 503, store: no answer in time"


async def test_a_second_system_on_the_directory_is_refused(system: System) -> None:
    with pytest.raises(StateDirBusy, match=f"process {os.getpid()}"):
        async with running(system.state_dir, service_list=STAND_INS):
            pass


async def test_two_systems_at_once_do_not_meet(tmp_path: Path) -> None:
    both_up = asyncio.Barrier(2)

    async def run(state_dir: Path) -> System:
        async with running(state_dir, service_list=STAND_INS) as system:
            await both_up.wait()
            return system

    one, two = await asyncio.gather(run(tmp_path / "one"), run(tmp_path / "two"))
    assert all(one.urls[name] != two.urls[name] for name in ("gateway", "ingest", "processor", "claims"))


async def test_a_service_that_fails_to_start_is_named_and_the_others_are_stopped(tmp_path: Path) -> None:
    failing = (sys.executable, "-c", "raise SystemExit('the port of the processor is not set')")
    broken = [replace(s, command=failing) if s.name == "processor" else s for s in STAND_INS]
    with pytest.raises(StartFailed, match="processor did not start: it ended with exit code 1") as failure:
        async with running(tmp_path, service_list=broken):
            pass
    assert "the port of the processor is not set" in str(failure.value)
    after = state.read(tmp_path)
    assert after is not None
    assert not after.ready
    assert [status.pid for status in after.processes] == [None] * len(after.processes)


async def test_at_the_end_everything_is_gone_and_the_directory_is_free(tmp_path: Path) -> None:
    async with running(tmp_path, service_list=STAND_INS) as system:
        identities = [identity for status in system.status() if (identity := status.identity()) is not None]
        assert len(identities) == 4
    assert not any(identity.alive() for identity in identities)
    state.lock(tmp_path).close()


async def test_a_configured_port_is_used_as_it_is(tmp_path: Path, system: System) -> None:
    free = int(system.urls["claims"].rpartition(":")[2]) - 1000
    only_claims: list[Service] = [service for service in STAND_INS if service.name in ("claims", "gateway")]
    async with running(tmp_path / "other", ports={"claims": free}, service_list=only_claims) as other:
        assert other.urls["claims"] == f"http://127.0.0.1:{free}"


async def test_a_port_nobody_has_a_use_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="no such port: gatway"):
        async with running(tmp_path, ports={"gatway": 8000}, service_list=STAND_INS):
            pass
