"""A store in RAM: the simplest correct `Store`, for tests and simulation.

Unit tests use it in place of mocks. What a folder or a bucket does with threads, temporary names
and conditional requests is one lock and one dict here.

Invariants: a name shows all of its bytes or does not exist; times are those of the store's own
clock, which stands still unless the test advances it.
"""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kvtier.clock import Clock, VirtualClock
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.store import ListEntry, ListPage, Read, Stat, check_folder, check_name

_START_S = 1.8e9


class _File(NamedTuple):
    data: Buffer
    stat: Stat


class MemoryStore:
    """A `Store` in RAM. Safe from any thread: one lock, held during the copies. Not persistent."""

    def __init__(self, clock: Clock | None = None) -> None:
        """`clock` gives `modified_s`; None: a clock that stands still, in 2027."""
        self._clock = clock or VirtualClock(_START_S)
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._versions = 0

    def publish(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Create a file; False where it exists."""
        check_name(name)
        with self._lock:
            if name in self._files:
                return False
            self._write(name, parts)
            return True

    def put(self, name: str, data: bytes) -> Stat:
        """Create or replace a file."""
        check_name(name)
        with self._lock:
            return self._write(name, [np.frombuffer(data, np.uint8)])

    def read(self, name: str, offset: int, buffers: Sequence[Buffer]) -> Read | None:
        """Fill `buffers` with the bytes from `offset`, as far as there are any."""
        check_name(name)
        with self._lock:
            file = self._files.get(name)
            if file is None:
                return None
            at = offset
            for buffer in buffers:
                part = file.data[at : at + buffer.nbytes]
                np.copyto(buffer[: part.nbytes], part)
                at += part.nbytes
            return Read(file.stat, at - offset)

    def stat(self, name: str) -> Stat | None:
        """Return the `Stat` of a file; None where there is none."""
        check_name(name)
        with self._lock:
            file = self._files.get(name)
            return None if file is None else file.stat

    def remove(self, name: str) -> bool:
        """Remove a file; False where there was none."""
        check_name(name)
        with self._lock:
            return self._files.pop(name, None) is not None

    def move(self, name: str, to: str) -> bool:
        """Rename a file, which keeps its time and version."""
        check_name(name)
        check_name(to)
        with self._lock:
            file = self._files.pop(name, None)
            if file is None:
                return False
            self._files[to] = file
            return True

    def list(self, folder: str, after: str = "", limit: int = 1000) -> ListPage:
        """Return a page of files. Costs O(files held)."""
        check_folder(folder)
        start = f"{folder}/" if folder else ""
        with self._lock:
            names = sorted(name for name in self._files if name.startswith(start) and name > after)
            page = [ListEntry(name, self._files[name].stat) for name in names[:limit]]
        return ListPage(page, page[-1].name if len(names) > limit else None)

    def close(self) -> None:
        """Do nothing; the files stay, as they would in a folder."""

    def raw(self, name: str) -> Buffer:
        """Return the stored bytes themselves, to inspect or corrupt them. Raises KeyError."""
        with self._lock:
            return self._files[name].data

    def _write(self, name: str, parts: Sequence[Buffer]) -> Stat:
        data = np.concatenate([np.empty(0, np.uint8), *parts])
        self._versions += 1
        stat = Stat(data.nbytes, str(self._versions), self._clock.now_s())
        self._files[name] = _File(data, stat)
        return stat
