"""Ports that no two checkouts, and nobody else, get at the same moment.

A port is held in two ways for as long as the supervisor lives:

* A lock among Carebus processes: a Unix socket in Linux's abstract namespace, named after the port. It has the
  very scope of a port (the network namespace), needs no file and goes when the process goes. Elsewhere than on
  Linux there is none, and only the second way protects.
* A TCP socket bound to the port and never listening. The kernel then gives the port to nobody who asks for any
  port. Both it and the child have SO_REUSEADDR set, so the child may bind and listen; several children may if they
  set SO_REUSEPORT as well. Connections to a port held like this, and not yet listened on, are refused as usual.

SO_REUSEADDR alone would let two supervisors hold one port; the lock alone would let the kernel give it away.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from carebus_local.errors import LocalError, PortTaken

__all__ = ["Ports", "hold", "remembered"]

HOST = "127.0.0.1"
# Below the range the kernel takes ports of outgoing connections from (32768 and up), so that a remembered port
# is likely to be free again at the next start.
_FREE_RANGE = range(20000, 32000)


class _Held:
    def __init__(self, lock: socket.socket | None, bound: socket.socket) -> None:
        self._sockets = [s for s in (lock, bound) if s is not None]

    def release(self) -> None:
        for held in self._sockets:
            held.close()


def hold(port: int) -> _Held | None:
    """Hold the port of 127.0.0.1 until released; None if another program has it."""
    lock = None
    if sys.platform == "linux":
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0carebus-port-{port}")
        except OSError:
            lock.close()
            return None
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((HOST, port))
    except OSError:
        bound.close()
        if lock is not None:
            lock.close()
        return None
    return _Held(lock, bound)


class Ports:
    """The ports of one state directory, remembered in `ports.json` there and held until `release`.

    `configured` ports are taken as they are or refused (`PortTaken`); for others the order is the remembered
    one, the preferred one, any free one.
    """

    def __init__(self, state_dir: Path, configured: Mapping[str, int] | None = None) -> None:
        self._file = state_dir / "ports.json"
        self._configured = dict(configured or {})
        self._remembered = remembered(state_dir)
        self._held: dict[str, tuple[int, _Held]] = {}

    def reserve(self, name: str, preferred: int | None = None) -> int:
        """The port for `name`, the same one for every call; held from now on. Raises PortTaken, LocalError."""
        if name in self._held:
            return self._held[name][0]
        for port in self._candidates(name, preferred):
            held = hold(port)
            if held is not None:
                self._held[name] = (port, held)
                self._write()
                return port
            if name in self._configured:
                raise PortTaken(name, port)
        raise LocalError(f"no free port for {name} between {_FREE_RANGE.start} and {_FREE_RANGE.stop}")

    def release(self) -> None:
        for _, held in self._held.values():
            held.release()
        self._held.clear()

    def _candidates(self, name: str, preferred: int | None) -> Iterator[int]:
        if name in self._configured:
            yield self._configured[name]
            return
        if name in self._remembered:
            yield self._remembered[name]
        if preferred is not None:
            yield preferred
        # Not from the bottom up: a port just given back by one run should not be what another run gets next.
        yield from random.sample(_FREE_RANGE, 200)

    def _write(self) -> None:
        self._remembered.update({name: port for name, (port, _) in self._held.items()})
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._remembered, indent=2) + "\n")


def remembered(state_dir: Path) -> dict[str, int]:
    """The ports of the last run by name; empty if there was none."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((state_dir / "ports.json").read_text())
        if isinstance(found, dict):
            return {str(name): port for name, port in found.items() if isinstance(port, int)}
    return {}
