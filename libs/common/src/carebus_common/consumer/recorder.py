"""Which event was being handled when the process died: a flight recorder that outlives a `kill -9`.

A small memory-mapped file notes the position of each event while its handler runs. The kernel keeps its pages when
the process is gone, so the next process on the same directory reads what was under way. A watchdog ends a process
whose handler does not return; it is then found in the same way. Where the directory does not survive (or none is
given) nothing is found, and a handler that kills its process does so again.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

from carebus_common.logging import get_logger

__all__ = ["Recorder", "open_recorder"]

log = get_logger(__name__)

_SLOT: Final = struct.Struct("<qqq")  # 1 while in use, partition, offset
_SLOTS: Final = 4096
EXIT_HUNG: Final = 86


class Recorder:
    """Notes what is being handled. `interrupted` are (partition, offset) that an earlier process did not finish.

    The first slot is for handlers that run to their end at once, of which there is only one at a time; the others
    are for coroutines. Without a directory it keeps its notes in anonymous memory: the watchdog works, and nothing
    outlives the process.
    """

    def __init__(self, directory: Path | None, name: str) -> None:
        self.interrupted: list[tuple[int, int]] = []
        self._lock: int | None = None
        self._map = self._open(directory, name) if directory is not None else mmap.mmap(-1, _SLOT.size * _SLOTS)
        self._free = list(range(_SLOTS - 1, 0, -1))
        self._began = 0.0
        self._watchdog: threading.Thread | None = None
        self._closed = threading.Event()

    def _open(self, directory: Path, name: str) -> mmap.mmap:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / f"{name}.handling", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Another process notes in it: this one's notes are nobody's to find.
            os.close(descriptor)
            log.warning("recorder-is-shared", directory=str(directory))
            return mmap.mmap(-1, _SLOT.size * _SLOTS)
        os.ftruncate(descriptor, _SLOT.size * _SLOTS)
        self._lock = descriptor
        notes = mmap.mmap(descriptor, _SLOT.size * _SLOTS)
        self.interrupted = [(p, offset) for used, p, offset in _SLOT.iter_unpack(notes[:]) if used]
        return notes

    def reported(self) -> None:
        """Forget what was interrupted, once it is known elsewhere."""
        for slot in range(_SLOTS):
            _SLOT.pack_into(self._map, slot * _SLOT.size, 0, 0, 0)
        self.interrupted = []

    def begin(self, partition: int, offset: int) -> None:
        """A handler is about to run to its end. On the hot path: two stores into memory."""
        _SLOT.pack_into(self._map, 0, 1, partition, offset)
        self._began = time.monotonic()

    def end(self) -> None:
        self._began = 0.0
        _SLOT.pack_into(self._map, 0, 0, 0, 0)

    def hold(self, partition: int, offset: int) -> int | None:
        """A coroutine is about to run; give what is returned to `release`. None: too many run to note this one."""
        if not self._free:
            return None
        slot = self._free.pop()
        _SLOT.pack_into(self._map, slot * _SLOT.size, 1, partition, offset)
        return slot

    def release(self, slot: int | None) -> None:
        if slot is not None:
            _SLOT.pack_into(self._map, slot * _SLOT.size, 0, 0, 0)
            self._free.append(slot)

    def watch(self, deadline: timedelta) -> None:
        """End the process when a handler that runs to its end at once has not done so by `deadline`."""
        self._watchdog = threading.Thread(
            target=self._watch, args=(deadline.total_seconds(),), name="handler-watchdog", daemon=True
        )
        self._watchdog.start()

    def _watch(self, seconds: float) -> None:
        while not self._closed.wait(min(1.0, seconds / 4)):
            began = self._began
            if began and time.monotonic() - began > seconds:
                log.critical("handler-hangs", deadline_seconds=seconds)
                # Not an exception: the thread that hangs would not see it, and its note must stay.
                os._exit(EXIT_HUNG)

    def close(self) -> None:
        self._closed.set()
        if self._watchdog is not None:
            self._watchdog.join()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def open_recorder(directory: Path | None, group: str) -> Recorder:
    """The recorder of a consumer group's member; a directory that cannot be written to is done without."""
    try:
        return Recorder(directory, group)
    except OSError as error:
        log.warning("recorder-unavailable", error=type(error).__name__)
        return Recorder(None, group)
