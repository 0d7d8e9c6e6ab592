"""Runs experiments on the system as `carebus up` starts it, in a state directory of its own."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

import carebus_local.kafka
from carebus_local.logs import log_path
from carebus_local.ports import hold
from carebus_local.program import Program
from carebus_local.services import SERVICES, Service
from carebus_local.system import System, running

from .faults import Processes, struck
from .ledger import Ledger
from .oracle import MINIMUM_ACCEPTED, Found, judge
from .processor import fix
from .proxy import Proxy
from .reading import NotDrained, Reader, reading
from .sender import Sender, Session

__all__ = ["Chaos", "Experiment", "Failed", "Setup", "started"]

ROOT = Path(__file__).resolve().parents[2]
Say = Callable[[str], None]
# What a sender may be answered; 502 and 504 while a service behind the gateway is killed.
_ANSWERS = frozenset({"202", "207", "400", "502", "503", "504"})


class Failed(AssertionError):
    """An experiment did not pass; `kinds` are those of the oracle's violations, if it was the oracle that said so."""

    def __init__(self, why: str, kinds: frozenset[str] = frozenset()) -> None:
        super().__init__(why)
        self.kinds = kinds


@dataclass(frozen=True, slots=True)
class Setup:
    """How the system is started; experiments with equal setups run on one system after the other.

    `proxied`: the services reach Kafka and the store through fault proxies. `env` is given to every service.
    """

    processors: int = 3
    ingest: int = 2
    proxied: bool = False
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Experiment:
    """`run` raises if it does not pass and returns its figures."""

    number: int
    title: str
    run: Callable[[Chaos], Awaitable[Mapping[str, Any]]]
    setup: Setup = Setup()


@dataclass
class Chaos:
    """What an experiment has: the running system, chance, and the means to send, to harm and to look."""

    system: System
    home: Path
    scale: float
    rng: random.Random
    say: Say
    processes: Processes
    reader: Reader
    session: Session
    kafka_proxy: Proxy | None = None
    store_proxy: Proxy | None = None
    senders: list[Sender] = field(default_factory=list)

    def begin(self, say: Say, rng: random.Random) -> None:
        """Make it the next experiment's: its own voice, chance and counts."""
        self.say, self.rng = say, rng
        self.processes = Processes(self.system, say)
        self.senders = []
        self.session.statuses.clear()
        self.session.failures.clear()

    def scaled(self, full: int, least: int) -> int:
        """So much of `full` as the scale asks for, and `least` in any case."""
        return max(least, round(full * self.scale))

    def sender(self, organization: str | None = None) -> Sender:
        """A sender of an organization of its own, with an empty ledger."""
        organization = organization or f"org-{self.rng.getrandbits(48):012x}"
        token = self.system.token(organization, ["event-sender"])
        sender = Sender(self.session, organization, token, random.Random(self.rng.getrandbits(64)), Ledger())
        self.senders.append(sender)
        return sender

    def fix(self, organization: str) -> None:
        """Solve the problem of an organization's failing events."""
        fix(self.home, organization)

    def arm(self, service: str, rules: str, *, pid: int | None = None) -> None:
        """Which failpoints the service's processes have, or one of them, from a moment later on; "" for none."""
        wanted = self.home / (f"failpoints-{service}" if pid is None else f"failpoints-{service}-{pid}")
        if not rules:
            wanted.unlink(missing_ok=True)
            return
        scratch = wanted.with_suffix(".new")
        scratch.write_text(rules)
        scratch.replace(wanted)

    def struck(self) -> Mapping[str, int]:
        return struck(self.system.state_dir / "logs")

    def log(self, name: str) -> str:
        return log_path(self.system.state_dir, name).read_text(errors="replace")

    async def health(self, name: str) -> tuple[int, str]:
        """A service's own word on its health; (0, "") while it does not answer."""
        try:
            answer = await self.session.http.get(f"{self.system.urls[name]}/health")
        except httpx.HTTPError:
            return 0, ""
        return answer.status_code, answer.text

    async def drained(self, *, within: float) -> float:
        """Wait until all is healthy, no group has lag and no patient waits for a retry; the seconds it took."""
        await self.processes.healthy(within=within)
        try:
            seconds = await self.reader.drained(within=within)
        except NotDrained as error:
            raise Failed(str(error), frozenset({"stuck"} if error.stuck else ())) from None
        self.say(f"drained in {seconds:.1f} s")
        return seconds

    async def verdict(self, sender: Sender, *, minimum_accepted: float = MINIMUM_ACCEPTED) -> Found:
        """Judge what came of the sender's events; raises Failed with the first violations."""
        found = await self.reader.found(sender.organization)
        violations = judge(sender.ledger, found, minimum_accepted=minimum_accepted)
        if violations:
            kinds = frozenset(violation.kind for violation in violations)
            shown = "\n".join(f"  {violation}" for violation in violations[:20])
            raise Failed(f"{len(violations)} violations ({', '.join(sorted(kinds))}):\n{shown}", kinds)
        odd = set(self.session.statuses) - _ANSWERS
        expect(not odd, f"answers nobody should get: {odd}")
        return found


def expect(holds: bool, what: str) -> None:
    """Raises Failed if it does not hold."""
    if not holds:
        raise Failed(what)


@asynccontextmanager
async def started(
    state_dir: Path, setup: Setup, *, scale: float, seed: int, say: Say, planted: str | None = None
) -> AsyncIterator[Chaos]:
    """The system, started with this setup and stopped at the end."""
    home = state_dir / "chaos"
    home.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        kafka_port, store_port = _free_port(), _free_port()
        proxies: dict[str, Proxy] = {}
        if setup.proxied:
            for name, port in (("kafka", kafka_port), ("store", store_port)):
                proxies[name] = Proxy(port, kafka=name == "kafka")
                await proxies[name].start()
                stack.push_async_callback(proxies[name].close)
            stack.enter_context(_advertised(proxies["kafka"].port))
        env = _environment(home, setup, proxies, planted)
        progress = _Progress()
        system = await stack.enter_async_context(
            running(
                state_dir,
                processors=setup.processors,
                ingest=setup.ingest,
                ports={"kafka": kafka_port, "store": store_port},
                log_format="json",
                on_progress=progress,
                service_list=[_with_chaos(service, env) for service in SERVICES],
            )
        )
        session = Session([system.urls["gateway"], system.urls["ingest"]])
        stack.push_async_callback(session.close)
        reader = await stack.enter_async_context(reading(system.parts))
        chaos = Chaos(
            system,
            home,
            scale,
            random.Random(seed),
            say,
            Processes(system, say),
            reader,
            session,
            proxies.get("kafka"),
            proxies.get("store"),
        )
        progress.chaos = chaos
        yield chaos


class _Progress:
    """Once the system is up, tells of restarts in the voice of the experiment of the moment."""

    def __init__(self) -> None:
        self.chaos: Chaos | None = None

    def __call__(self, name: str, what: str) -> None:
        if self.chaos is not None and what.startswith(("restarting", "unhealthy")):
            self.chaos.say(f"{name} {what[:160]}")


def _environment(home: Path, setup: Setup, proxies: Mapping[str, Proxy], planted: str | None) -> dict[str, str]:
    env = {
        "CHAOS_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "CAREBUS_ENVIRONMENT": "test",
        "CAREBUS_LOG_HASH_KEY": "chaos",
        **dict(setup.env),
    }
    if planted:
        env["CHAOS_PLANTED"] = planted
    if proxies:
        env["CAREBUS_KAFKA_BOOTSTRAP"] = f"127.0.0.1:{proxies['kafka'].port}"
        env["CAREBUS_MONGO_URL"] = f"mongodb://127.0.0.1:{proxies['store'].port}/?directConnection=true"
    return env


def _with_chaos(service: Service, env: Mapping[str, str]) -> Service:
    """The service, with the harness's environment; processor and claims may have failpoints armed."""
    commands = {
        "processor": (sys.executable, "-m", "tests.chaos.processor"),
        "claims": (sys.executable, "-m", "tests.chaos.armed", "carebus_claims.main"),
    }
    return replace(service, command=commands.get(service.name, service.command), env={**service.env, **env})


def _free_port() -> int:
    for port in random.sample(range(20000, 32000), 200):
        held = hold(port)
        if held is not None:
            held.release()
            return port
    raise RuntimeError("no free port")


class _advertised:  # noqa: N801 - used like a function
    """Let the broker tell its clients this port, so that they reach it by the proxy only."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._program = carebus_local.kafka.program

    async def _patched(self, state_dir: Path, port: int, controller_port: int) -> Program:
        program = await self._program(state_dir, port, controller_port)
        config = state_dir / "kafka" / "server.properties"
        text = config.read_text().replace(f"advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n", "")
        config.write_text(f"{text}advertised.listeners=PLAINTEXT://127.0.0.1:{self._port}\n")
        return program

    def __enter__(self) -> None:
        carebus_local.kafka.program = self._patched

    def __exit__(self, *_: object) -> None:
        carebus_local.kafka.program = self._program


async def until(check: Callable[[], Awaitable[bool]], *, within: float, what: str) -> None:
    """Poll to a deadline; raises Failed."""
    try:
        async with asyncio.timeout(within):
            while not await check():
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise Failed(f"not within {within:g} s: {what}") from None
