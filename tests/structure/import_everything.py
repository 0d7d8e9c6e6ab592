"""Imports every module of every package, and dies where one reaches out. Prints how many there were.

A program of its own: in a process that has imported a module before, importing it again proves nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

PACKAGES = (
    "carebus_common",
    "carebus_local",
    "carebus_cli",
    "carebus_ingest",
    "carebus_processor",
    "carebus_claims",
    "carebus_gateway",
)
REACHING_OUT = {"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.posix_spawn", "os.exec"}


def forbid(event: str, arguments: tuple[Any, ...]) -> None:
    if event in REACHING_OUT:
        raise RuntimeError(f"{event}{arguments!r} while importing")


def main() -> None:
    sys.addaudithook(forbid)
    names = [
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        # Running is what `__main__` is for.
        if not module.name.endswith(".__main__")
    ]
    for name in names:
        importlib.import_module(name)
    print(len(names))


if __name__ == "__main__":
    main()
