"""Bugs the runtime does not have, put into it by name. The harness must catch each: a checker that cannot fail
proves nothing."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["BUGS", "plant"]

BUGS: dict[str, Callable[[], None]] = {}


def plant(name: str | None) -> None:
    """Put the bug into this process. Raises KeyError if there is none of that name."""
    if name:
        BUGS[name]()
