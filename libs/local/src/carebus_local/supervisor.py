"""Child processes that are started, asked for their health, started again when they die, and stopped.

Run it in the main thread's event loop: on Linux a child dies with the thread that started it (see `guard`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from carebus_local.errors import StartFailed
from carebus_local.guard import guarded
from carebus_local.identity import identify
from carebus_local.logs import last_words, log_path, rotate
from carebus_local.program import Check, Kind, Program
from carebus_local.state import Health, Status

__all__ = ["Supervisor"]

_CHECK_TIMEOUT = timedelta(seconds=3)
_CHECK_EVERY = timedelta(seconds=2)
# One missed check may be a pause of the machine; the second one in a row counts.
_MISSES_TO_UNHEALTHY = 2
_FIRST_BACKOFF = timedelta(milliseconds=250)
_LONGEST_BACKOFF = timedelta(seconds=15)
# Having been healthy for so long, a child is started again as if for the first time.
_STABLE_AFTER = timedelta(seconds=10)


class Supervisor:
    """Runs programs, their logs under `state_dir`.

    `on_change` is called, in the loop, with each new status; it must not block for long.
    """

    def __init__(self, state_dir: Path, *, on_change: Callable[[Status], None] | None = None) -> None:
        self._state_dir = state_dir
        self._on_change = on_change or (lambda _: None)
        self._children: dict[str, _Child] = {}

    def status(self) -> list[Status]:
        """Every program ever given, in the order of their starts."""
        return [child.status for child in self._children.values()]

    def pid(self, name: str) -> int:
        """The process id of a running child. Raises LookupError."""
        pid = self._children[name].status.pid
        if pid is None:
            raise LookupError(f"{name} does not run")
        return pid

    async def start(self, program: Program) -> None:
        """Start a program and wait until it is healthy; from then on it is kept running. Raises StartFailed."""
        child = self._children.get(program.name)
        if child is not None and child.status.health != "stopped":
            raise ValueError(f"{program.name} already runs")
        child = _Child(program, self._state_dir, self._on_change)
        self._children[program.name] = child
        await child.start()

    async def start_again(self, name: str) -> None:
        """Start a child that was stopped, as it was. Raises StartFailed, LookupError."""
        await self.start(self._children[name].program)

    def watch(self, name: str, kind: Kind, url: str, check: Check) -> None:
        """Ask after something that runs elsewhere, so that its health is told too."""
        self._children[name] = _Child(
            Program(name=name, kind=kind, command=(), url=url, check=check), self._state_dir, self._on_change
        )
        self._children[name].watch_only()

    async def stop(self, *names: str) -> None:
        """Stop children, all at once; returns when they are gone. SIGTERM, then SIGKILL at their deadline."""
        await asyncio.gather(*(self._children[name].stop() for name in names))

    async def stop_all(self, order: Sequence[Kind] = ("service", "part")) -> None:
        """Stop everything: what needs the parts before the parts."""
        for kind in order:
            await self.stop(*(name for name, child in self._children.items() if child.program.kind == kind))


class _Child:
    def __init__(self, program: Program, state_dir: Path, on_change: Callable[[Status], None]) -> None:
        self.program = program
        self._log = log_path(state_dir, program.name)
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._log_start = 0
        log = str(self._log) if program.command else None
        self.status = Status(program.name, program.kind, program.url, "stopped", log=log)

    async def start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        rotate(self._log)
        try:
            await self._spawn()
            await self._until_healthy()
        except BaseException as error:
            await self._end()
            self._tell("stopped", detail=error.why if isinstance(error, StartFailed) else None)
            raise
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.program.name}")

    def watch_only(self) -> None:
        self._tell("starting")
        self._keeper = asyncio.create_task(self._watch(), name=f"watch {self.program.name}")

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._end()
        self._tell("stopped")

    async def _spawn(self) -> None:
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *guarded(self.program.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.program.env},
                # Ctrl-C in a terminal goes to the supervisor alone, which then stops its children in order.
                start_new_session=True,
            )
        self._tell("starting")

    async def _until_healthy(self) -> None:
        """Wait for the first passed check of a process just started. Raises StartFailed; leaves the process be."""
        if self._process is None:
            raise RuntimeError("not spawned")
        seconds = self.program.start_deadline.total_seconds()
        why = "no check was made"
        ended = asyncio.create_task(self._process.wait())
        try:
            async with asyncio.timeout(seconds):
                while not ended.done():
                    missed = await self._check(ended)
                    if missed is None and not ended.done():
                        self._tell("healthy")
                        return
                    why = missed or why
                    await asyncio.wait([ended], timeout=0.03)
            raise self._failure(_how_it_ended(ended.result()))
        except TimeoutError:
            raise self._failure(f"not healthy within {seconds:g} s ({why})") from None
        finally:
            ended.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ended

    async def _check(self, ended: asyncio.Task[int] | None = None) -> str | None:
        """Why it is not healthy, or None. Given up when the process ends, which no check would notice as soon."""
        asked = asyncio.create_task(_ask(self.program.check))
        try:
            waited = {asked} if ended is None else {asked, ended}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            return asked.result() if asked.done() else "it ended"
        finally:
            asked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asked

    def _failure(self, why: str) -> StartFailed:
        tail = last_words(self._log, since=self._log_start)
        return StartFailed(self.program.name, why, log=self._log, last_lines=tail)

    async def _keep(self) -> None:
        """Watch a healthy child; when it ends, start it again, ever later if it does not stay up."""
        backoff = _FIRST_BACKOFF
        clock = asyncio.get_running_loop().time
        healthy_since: float | None = clock()
        while True:
            process = self._process
            if process is None:
                raise RuntimeError("not spawned")
            why = _how_it_ended(await self._watched(process)) if healthy_since is not None else "it did not start"
            if healthy_since is not None and clock() - healthy_since >= _STABLE_AFTER.total_seconds():
                backoff = _FIRST_BACKOFF
            await self._end()
            self._tell("restarting", detail=why, restarts=self.status.restarts + 1)
            await asyncio.sleep(backoff.total_seconds())
            backoff = min(backoff * 2, _LONGEST_BACKOFF)
            healthy_since = None
            try:
                await self._spawn()
                await self._until_healthy()
                healthy_since = clock()
            except (StartFailed, OSError) as error:
                self._tell("unhealthy", detail=getattr(error, "why", str(error)))

    async def _watched(self, process: asyncio.subprocess.Process) -> int:
        """Ask a running child for its health until it ends; returns how it ended."""
        ended = asyncio.create_task(process.wait())
        watch = asyncio.create_task(self._watch(ended))
        try:
            return await asyncio.shield(ended)
        finally:
            for task in (watch, ended):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _watch(self, ended: asyncio.Task[int] | None = None) -> None:
        misses = 0
        while ended is None or not ended.done():
            if ended is not None or misses or self.status.health != "starting":
                await asyncio.sleep(_CHECK_EVERY.total_seconds())
            missed = await self._check(ended)
            misses = misses + 1 if missed else 0
            if missed is None and self.status.health != "healthy":
                self._tell("healthy")
            elif misses >= _MISSES_TO_UNHEALTHY:
                self._tell("unhealthy", detail=missed)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self.program.stop_deadline.total_seconds()):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        await process.wait()

    def _tell(self, health: Health, *, detail: str | None = None, restarts: int | None = None) -> None:
        running = self._process is not None and self._process.returncode is None
        identity = identify(self._process.pid) if running and self._process is not None else None
        status = Status(
            name=self.program.name,
            kind=self.program.kind,
            url=self.program.url,
            health=health,
            pid=identity.pid if identity else None,
            started=identity.started if identity else None,
            restarts=self.status.restarts if restarts is None else restarts,
            detail=detail,
            log=self.status.log,
        )
        if status != self.status:
            self.status = status
            self._on_change(status)


async def _ask(check: Check) -> str | None:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT.total_seconds()):
            await check()
    except Exception as error:  # Whatever a check raises is its way of saying no.
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return None


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"
