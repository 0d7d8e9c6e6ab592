"""Loops that end when they are cancelled, also when somebody below swallows that."""

from __future__ import annotations

import asyncio

__all__ = ["cancelled"]


def cancelled() -> bool:
    """Whether the running task was asked to end.

    A loop that runs until it is cancelled asks this each time around. `asyncio.wait_for` of Python 3.11, which PyMongo
    sends every message with, returns what was done instead of raising the CancelledError that came at the same moment
    (https://github.com/python/cpython/issues/86296): the task would go on for ever, and whoever waits for it too.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
