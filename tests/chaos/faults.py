"""What happens to processes: killed, halted, let go on. Starting them again is the supervisor's affair."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

from carebus_local.system import System

__all__ = ["Processes", "struck"]


class Processes:
    """The system's processes by name."""

    def __init__(self, system: System, say: Callable[[str], None]) -> None:
        self._system = system
        self._say = say
        self.kills: Counter[str] = Counter()

    def pid(self, name: str) -> int:
        """Raises LookupError if it does not run now."""
        return self._system.supervisor.pid(name)

    def up(self, service: str) -> list[str]:
        """The service's replicas that are healthy now."""
        return [
            one.name
            for one in self._system.status()
            if one.name.partition("-")[0] == service and one.health == "healthy"
        ]

    def kill(self, name: str) -> bool:
        """SIGKILL; False if it did not run."""
        try:
            os.kill(self.pid(name), signal.SIGKILL)
        except (LookupError, ProcessLookupError):
            return False
        self.kills[name] += 1
        self._say(f"kill -9 {name}")
        return True

    @asynccontextmanager
    async def halted(self, name: str) -> AsyncIterator[None]:
        """SIGSTOP, and SIGCONT at the end."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGSTOP)
        self._say(f"SIGSTOP {name}")
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            self._say(f"SIGCONT {name}")

    def resume(self, pid: int) -> None:
        """SIGCONT to a process that has halted itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    @asynccontextmanager
    async def away(self, name: str) -> AsyncIterator[None]:
        """Stopped, and started again at the end."""
        await self._system.supervisor.stop(name)
        self._say(f"{name} is gone")
        try:
            yield
        finally:
            await self._system.supervisor.start_again(name)
            self._say(f"{name} is back")

    async def healthy(self, *, within: float, but: frozenset[str] = frozenset()) -> float:
        """Wait until everything that should run does; the seconds it took. Raises AssertionError."""
        began = monotonic()
        while sick := [
            s for s in self._system.status() if s.health not in ("healthy", "stopped") and s.name not in but
        ]:
            if monotonic() - began > within:
                what = ", ".join(f"{one.name}: {one.health} ({one.detail})" for one in sick)
                raise AssertionError(f"not healthy within {within:g} s: {what}")
            await asyncio.sleep(0.1)
        return monotonic() - began


_STRUCK = re.compile(r"^failpoint ([a-z-]+): (\w+) at pass \d+$", re.MULTILINE)


def struck(logs: Path) -> Counter[str]:
    """How often each failpoint has struck, by the services' logs."""
    found: Counter[str] = Counter()
    for log in logs.iterdir():
        if log.is_file():
            found.update(name for name, _ in _STRUCK.findall(log.read_text(errors="replace")))
    return found
