"""Who read what, told to whoever cleans the store.

Not by access times: `relatime` and object stores make them useless. Readers note the segments
they read and put the names into a small file now and then; the file's own time, which the
store gives it, says when. So no host's clock is trusted, and a read costs a set insertion.

Invariants: a file lists each segment once; at most FILES_KEPT files of one writer exist;
losing one only makes its segments look a little colder.
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
"""An hour of them: where nobody cleans the store, they must not pile up."""
_NAMES_MAX: Final = 50_000


class AccessJournal:
    """The journal of one process below one folder of a key space. Safe from any thread."""

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
        """The segment `name`, relative to the key space's folder, was read."""
        with self._lock:
            if len(self._names) < _NAMES_MAX:
                self._names[name] = None

    def flush_if_due(self) -> None:
        """Write the journal if it is time to. Raises OSError; what was noted is kept then."""
        if self._clock.now_s() >= self._due_s:
            self.flush()

    def flush(self) -> None:
        """Write what was noted since the last time. Raises OSError."""
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
