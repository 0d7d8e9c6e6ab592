"""How many events one ingest process accepts: `python bench/ingest/run.py [SECONDS]`; needs `wrk`.

Starts Kafka and Valkey of its own and one ingest with everything on (token, rate limit, strict JSON, schema of the
type, acks=all from an idempotent producer), and posts single events over 32 and 128 connections.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from pathlib import Path

from carebus_common.testing.tokens import Issuer
from carebus_local import topics
from carebus_local.parts import Site, start_kafka, start_valkey
from carebus_local.ports import Ports
from carebus_local.state import lock
from carebus_local.supervisor import Supervisor

CONNECTIONS = (32, 128)
UNLIMITED = "1000000000000"


async def main(seconds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="carebus-bench-") as name, lock(Path(name)):
        scratch = Path(name)
        ports = Ports(scratch)
        supervisor = Supervisor(scratch)
        try:
            site = Site(scratch, ports, supervisor, {}, usual_ports=False)
            await asyncio.gather(start_kafka(site), start_valkey(site))
            await topics.apply(site.urls().kafka_bootstrap)
            await measure(site, scratch, seconds)
        finally:
            await supervisor.stop_all()
            ports.release()


async def measure(site: Site, scratch: Path, seconds: int) -> None:
    issuer = Issuer()
    environment = {
        **site.urls().as_env(),
        "CAREBUS_PORT": "0",
        "CAREBUS_JWKS": str(issuer.write_jwks(scratch / "jwks.json")),
        "CAREBUS_RATE_LIMIT_EVENTS_PER_MINUTE": UNLIMITED,
        "CAREBUS_RATE_LIMIT_BYTES_PER_MINUTE": UNLIMITED,
    }
    log = scratch / "ingest.log"
    with log.open("wb") as output:
        ingest = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "carebus_ingest.main", env={**os.environ, **environment}, stderr=output
        )
    try:
        port = await listening(log, ingest)
        token = issuer.token(lifetime=3600)
        await wrk(port, token, 32, 3)
        print("| connections | events/s | p50 ms | p99 ms | max ms | CPU µs an event | errors |")
        print("|---|---|---|---|---|---|---|")
        for connections in CONNECTIONS:
            before = cpu_seconds(ingest.pid)
            rate, p50, p99, worst, errors = await wrk(port, token, connections, seconds)
            cpu = (cpu_seconds(ingest.pid) - before) / (float(rate) * seconds) * 1e6
            print(f"| {connections} | {rate} | {p50} | {p99} | {worst} | {cpu:.0f} | {errors} |", flush=True)
    finally:
        ingest.terminate()
        await ingest.wait()


async def listening(log: Path, ingest: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(30):
        while not (found := re.search(r'(?=.*"event": "listening").*"port": (\d+)', log.read_text())):
            if ingest.returncode is not None:
                raise SystemExit(log.read_text())
            await asyncio.sleep(0.05)
    return int(found[1])


async def wrk(port: int, token: str, connections: int, seconds: int) -> list[str]:
    """Events a second, p50, p99 and maximum in ms, errors."""
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s"),
        *("-s", str(Path(__file__).with_name("post.lua")), f"http://127.0.0.1:{port}/events"),
        env={**os.environ, "TOKEN": token},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    found = re.search(r"^RESULT (.*)$", printed.decode(), re.MULTILINE)
    if found is None:
        raise SystemExit(printed.decode())
    return found[1].split()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
