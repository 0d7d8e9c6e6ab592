"""The whole of Carebus on this machine: the parts, the topics, the services, under one supervisor.

async with running(Path(".carebus"), processors=2) as system:
    system.urls["gateway"], system.token("org-1", ["event-sender"]), system.status()
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from carebus_local import jars, keys, services, state, topics
from carebus_local.errors import LocalError
from carebus_local.parts import (
    PARTS,
    Site,
    StackUrls,
    start_kafka,
    start_store,
    start_valkey,
    together,
    without_password,
)
from carebus_local.ports import Ports
from carebus_local.program import Check
from carebus_local.services import Planned, Service
from carebus_local.supervisor import Supervisor

__all__ = ["PORT_NAMES", "Progress", "System", "running"]

# What a port may be configured for.
PORT_NAMES: Final = ("gateway", "ingest", "processor", "claims", "kafka", "kafka-controller", "store", "valkey")

# Told the name of a part or service and what became of it: "starting", "healthy", "restarting: …", …
Progress = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class System:
    """What runs. `urls` has gateway, ingest, processor, claims, kafka, store and valkey; `parts` their full URLs."""

    state_dir: Path
    urls: Mapping[str, str]
    parts: StackUrls
    supervisor: Supervisor

    def token(self, organization_id: str, roles: Iterable[str], *, subject: str = "developer") -> str:
        """An access token for these services, good for 12 hours. Raises ValueError (see `keys.mint`)."""
        return keys.mint(self.state_dir, organization_id, roles, subject=subject)

    def status(self) -> list[state.Status]:
        """Every part and service, now."""
        return self.supervisor.status()


@asynccontextmanager
async def running(
    state_dir: Path,
    *,
    processors: int = 1,
    ingest: int = 1,
    ports: Mapping[str, int] | None = None,
    log_format: str = "console",
    on_progress: Progress = lambda _name, _what: None,
    service_list: Iterable[Service] | None = None,
) -> AsyncIterator[System]:
    """Start everything, each as soon as what it needs is healthy; enter when all of it is; stop all at the end.

    `ports` are those to take as they are, by a name of `PORT_NAMES`. What dies later is
    started again, the parts too. `service_list` replaces `services.SERVICES`. Call it in the main thread's loop.
    Raises LocalError: StartFailed, PortTaken, StateDirBusy.
    """
    if unknown := set(ports or ()) - set(PORT_NAMES):
        raise LocalError(f"no such port: {', '.join(sorted(unknown))}; there are {', '.join(PORT_NAMES)}")
    state_dir = state_dir.absolute()  # noqa: ASYNC240 - touches no disk
    with state.lock(state_dir):
        for left in await asyncio.to_thread(state.clean_up, state_dir):
            on_progress(left.name, f"ended, left over by an earlier run (process {left.pid})")
        held = Ports(state_dir, ports)
        book = _Book(state_dir, on_progress)
        supervisor = Supervisor(state_dir, on_change=book.note)
        book.supervisor = supervisor
        try:
            site = Site(state_dir, held, supervisor, os.environ)
            stack = site.urls()
            plan = services.plan(service_list or services.SERVICES, held, {"processor": processors, "ingest": ingest})
            urls = {planned.name: planned.url for planned in plan if planned.name == planned.service.name}
            jwks = await asyncio.to_thread(keys.ensure_key, state_dir)
            env = stack.as_env() | services.environment(urls, jwks, log_format)
            for name in ("log-hash-key", "audit-key"):
                variable = f"CAREBUS_{name.replace('-', '_').upper()}"
                env[variable] = await asyncio.to_thread(keys.ensure_secret, state_dir, name)
            urls |= {name: without_password(url) for name, url in zip(PARTS, stack.as_env().values(), strict=True)}
            book.write(urls=urls)
            await _start(site, plan, env, book)
            book.write(ready=True)
            yield System(state_dir, urls, stack, supervisor)
        finally:
            with contextlib.suppress(OSError):
                book.write(ready=False)
            await supervisor.stop_all()
            held.release()


class _Book:
    """Keeps `state.json` up to date and tells of progress."""

    def __init__(self, state_dir: Path, on_progress: Progress) -> None:
        self.supervisor: Supervisor | None = None
        self.on_progress = on_progress
        self._state_dir = state_dir
        self._state = state.State(supervisor=state.myself(), ready=False)
        self._began: dict[str, float] = {}

    def note(self, status: state.Status) -> None:
        now = time.monotonic()
        text = str(status.health)
        if status.health in ("starting", "restarting"):
            self._began[status.name] = now
        elif status.health == "healthy" and status.name in self._began:
            text += f" after {now - self._began.pop(status.name):.1f} s"
        self.say(status.name, f"{text}: {status.detail}" if status.detail else text)
        # A full disk or a closed pipe must not end the supervision that this is the record of.
        try:
            self.write()
        except OSError as error:
            self.say("state", f"state.json could not be written: {error}")

    def say(self, name: str, what: str) -> None:
        with contextlib.suppress(OSError):
            self.on_progress(name, what)

    def write(self, *, ready: bool | None = None, urls: Mapping[str, str] | None = None) -> None:
        self._state = replace(
            self._state,
            ready=self._state.ready if ready is None else ready,
            urls=self._state.urls if urls is None else dict(urls),
            processes=tuple(self.supervisor.status()) if self.supervisor else (),
        )
        state.write(self._state_dir, self._state)


async def _start(site: Site, plan: list[Planned], service_env: Mapping[str, str], book: _Book) -> None:
    ready = {name: asyncio.Event() for name in PARTS}

    async def kafka() -> None:
        if site.given("kafka") is None and not jars.are_cached():
            book.say("kafka", f"fetching Apache Kafka {jars.KAFKA_VERSION} (44 MB), this once")
        await start_kafka(site)
        began = time.monotonic()
        changes = await topics.apply(site.urls().kafka_bootstrap)
        changed = sum(change.action != "unchanged" for change in changes)
        book.say("topics", f"{changed} of {len(changes)} changed, {time.monotonic() - began:.1f} s")

    async def part(name: str, started: Coroutine[Any, Any, None]) -> None:
        await started
        ready[name].set()

    async def service(planned: Planned) -> None:
        for name in planned.service.needs:
            await ready[name].wait()
        notes = {"CAREBUS_NOTES_DIR": str(site.state_dir / "notes" / planned.name)}
        program = services.program(planned, {**service_env, **notes})
        if not planned.service.needs:
            program = replace(program, check=once_the_others_are_up(program.check))
        await site.supervisor.start(program)
        up.add(planned.name)
        if up >= in_need:
            others_up.set()

    # The gateway starts at once, to be done with its imports, but is asked only when those behind it answer: it
    # repeats an answer for a second.
    in_need = {planned.name for planned in plan if planned.service.needs}
    up: set[str] = set()
    others_up = asyncio.Event()

    def once_the_others_are_up(check: Check) -> Check:
        async def waiting_check() -> None:
            await others_up.wait()
            await check()

        return waiting_check

    if not in_need:
        others_up.set()
    await together(
        part("kafka", kafka()),
        part("store", start_store(site)),
        part("valkey", start_valkey(site)),
        *(service(planned) for planned in plan),
    )
