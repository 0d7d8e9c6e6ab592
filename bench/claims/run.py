"""How fast claims are, with a million of them: `python bench/claims/run.py [--claims N] …`, see README.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from data import Population, as_loaded, load
from users import Questions, Timings, closed_loop, one_after_another

from carebus_claims.audit_trail import AuditTrail
from carebus_claims.claim_store import ClaimStore
from carebus_common import mongo
from carebus_common.settings import MongoSettings
from carebus_common.testing.tokens import Issuer
from carebus_local import store, topics
from carebus_local.parts import Site, start_kafka, start_store, start_valkey
from carebus_local.ports import Ports
from carebus_local.state import lock
from carebus_local.supervisor import Supervisor

KEY = "the key of the benchmark's audit"


async def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="carebus-bench-") as name:
        scratch = Path(options.state_dir or name)
        scratch.mkdir(exist_ok=True)
        with lock(scratch):
            ports, supervisor = Ports(scratch), Supervisor(scratch)
            try:
                given = {"CAREBUS_MONGO_URL": url} if (url := os.environ.get("CAREBUS_MONGO_URL")) else {}
                site = Site(scratch, ports, supervisor, given, usual_ports=False)
                await asyncio.gather(start_kafka(site), start_store(site), start_valkey(site))
                await topics.apply(site.urls().kafka_bootstrap)
                await measure(site, scratch, options)
            finally:
                await supervisor.stop_all()
                ports.release()


async def measure(site: Site, scratch: Path, options: argparse.Namespace) -> None:
    client = mongo.connect(MongoSettings(mongo_url=site.urls().mongo_url), app_name="bench")
    population = Population(options.claims, options.organizations)
    # Loaded once for each state directory and size; what the last run changed is made anew.
    database = client[f"bench_claims_{options.claims}_{options.organizations}"]
    kind = "the one given" if os.environ.get("CAREBUS_MONGO_URL") else Path(store.find()).name
    print(f"{options.claims:,} claims of {options.organizations} organizations; store: {kind}; {os.cpu_count()} CPUs")
    if await database["claims_heads"].count_documents({}) != options.organizations:
        await client.drop_database(database.name)
        began = time.perf_counter()
        await ClaimStore(database, audit_key=KEY.encode()).create_indexes()
        await load(database, population, KEY.encode(), audit=options.audit)
        print(f"loaded in {time.perf_counter() - began:.0f} s")
    else:
        await as_loaded(database)
    issuer = Issuer()
    questions = Questions(population, issuer, random.Random(options.seed))
    questions.add_up()
    async with serving(site, scratch, issuer, database.name) as address:
        timings = Timings()
        users, seconds, rate = options.users, options.seconds, options.rate
        some = questions.some_claims(500)
        await one_after_another(address, timings, "get, first time (from the store)", [questions.get(c) for c in some])
        await closed_loop(address, timings, "get, warm", users, seconds, rate, lambda: questions.get_one_of(some))
        await closed_loop(address, timings, "list, any page and filter", users, seconds, rate, questions.list)
        await closed_loop(address, timings, "list, 50 hot ones", users, seconds, rate, questions.hot_list)
        await closed_loop(address, timings, "dashboard", users, seconds, rate, questions.dashboard)
        await closed_loop(address, timings, "get, no thinking", users, 5, None, lambda: questions.get_one_of(some))
        for n in range(5):
            creation, ids = questions.bulk_create(n)
            await one_after_another(address, timings, "bulk create of 1,000", [creation])
            await one_after_another(address, timings, "bulk update of 1,000", [questions.bulk_update(n, ids)])
        timings.print()
        slowest = sorted(timings.slowest, reverse=True)[: options.slowest]
        for milliseconds, path in slowest:
            print(f"  {milliseconds:.0f} ms  {path}")
    if options.audit:
        found = await AuditTrail(database, KEY.encode()).verify(population.organizations[0])
        if not found.whole:
            raise SystemExit(f"the audit is not whole: {found.faults[:5]}")
    if not options.state_dir:
        await client.drop_database(database.name)
    await client.close()


@asynccontextmanager
async def serving(site: Site, scratch: Path, issuer: Issuer, database: str) -> AsyncIterator[tuple[str, int]]:
    """The service in a process of its own, as in production."""
    port = site.port("claims-bench")
    environment = {
        **site.urls().as_env(),
        "CAREBUS_PORT": str(port),
        "CAREBUS_JWKS": str(issuer.write_jwks(scratch / "jwks.json")),
        "CAREBUS_CLAIMS_DATABASE": database,
        "CAREBUS_AUDIT_KEY": KEY,
        "CAREBUS_CURSOR_KEY": KEY,
        "CAREBUS_LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, *(os.environ.get("BENCH_PYTHON", "").split()), "-m", "carebus_claims.main"]
    with (scratch / "claims.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **environment}, stdout=log, stderr=log
        )
        try:
            async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(60):
                while not await _healthy(http, port):
                    await asyncio.sleep(0.1)
            yield "127.0.0.1", port
        finally:
            process.terminate()
            await process.wait()
    complaints = [line for line in (scratch / "claims.log").read_text().splitlines() if '"error"' in line]
    if complaints:
        print(f"the service's log has {len(complaints)} complaints, such as {complaints[0][:300]}")


async def _healthy(http: httpx.AsyncClient, port: int) -> bool:
    try:
        answer: dict[str, Any] = json.loads((await http.get(f"http://127.0.0.1:{port}/health")).content)
    except httpx.HTTPError:
        return False
    return bool(answer.get("data", {}).get("status") == "ok")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--claims", type=int, default=1_000_000)
    parser.add_argument("--organizations", type=int, default=50)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--rate", type=float, default=150, help="requests a second, of all users together")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--audit", action="store_true", help="load each claim's audit entry too, and verify one chain")
    parser.add_argument("--state-dir", help="keep the loaded store there for the next run")
    parser.add_argument("--slowest", type=int, default=5, help="how many of the slowest requests to show")
    asyncio.run(main(parser.parse_args()))
