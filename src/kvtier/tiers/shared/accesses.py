"""The access journal: which segments were read, for the evictor.

File access times cannot be used: `relatime` and object stores make them useless. Instead, a reader
notes the segments that it reads and writes their names into a small file every FLUSH_S. The
modification time that the store gives this file says when, so no host's clock is trusted. A read
costs one insertion into a dict.

Invariants: a file lists each segment once; at most FILES_KEPT files of one writer exist. A lost
file only makes its segments look less recently used than they are.
"""

import os
import re
import socket
import threading
from collections import deque
from typing import Final

from kvtier.clock import Clock, unique_id
from kvtier.tiers.shared.store import Store

FLUSH_S: Final = 10.0
FILES_KEPT: Final = 360
"""The files of one hour; the bound matters where no evictor removes them."""
_NAMES_MAX: Final = 50_000


class AccessJournal:
    """The access journal of one process below the folder of a key space. Safe from any thread."""

    def __init__(self, store: Store, folder: str, clock: Clock) -> None:
        self._store = store
        self._folder = f"{folder}/access"
        self._clock = clock
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()).strip("-") or "host"
        self._writer = f"{host}-{os.getpid()}-{unique_id()[:8]}"
        self._lock = threading.Lock()
        self._names: dict[str, None] = {}
        self._written: deque[str] = deque()
        self._count = 0
        self._due_s = clock.now_s() + FLUSH_S

    def note(self, name: str) -> None:
        """Note that the segment `name`, relative to the key space's folder, was read."""
        with self._lock:
            if len(self._names) < _NAMES_MAX:
                self._names[name] = None

    def flush_if_due(self) -> None:
        """Flush if FLUSH_S has passed since the last time. Raises OSError as `flush` does."""
        if self._clock.now_s() >= self._due_s:
            self.flush()

    def flush(self) -> None:
        """Write the names noted since the last flush. If it raises OSError, they are kept."""
        with self._lock:
            self._due_s = self._clock.now_s() + FLUSH_S
            if not self._names:
                return
            names, self._names = self._names, {}
            self._count += 1
            file = f"{self._folder}/{self._writer}-{self._count:08d}.log"
        try:
            self._store.put(file, "".join(f"{name}\n" for name in names).encode())
        except OSError:
            with self._lock:
                self._names = {**names, **self._names}
            raise
        self._written.append(file)
        while len(self._written) > FILES_KEPT:
            self._store.remove(self._written.popleft())
