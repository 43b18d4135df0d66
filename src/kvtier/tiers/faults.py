"""Counting faults and telling of each kind once.

A broken device fails thousands of times a second. Each kind (operation and errno) is logged
when it appears and again when the operation has worked for a while without it; between the two
only counters move. The while keeps one bad sector among good ones from filling the log.
"""

import errno
import logging
import threading

import msgspec

from kvtier.clock import Clock

logger = logging.getLogger(__name__)

QUIET_S = 30.0
"""A fault is over when the operation works and there was none for this long."""


class TierIO(msgspec.Struct, kw_only=True):
    """What a tier has done since it was opened."""

    bytes_read: int = 0
    """Payload of blocks that were read and verified."""
    bytes_written: int = 0
    """Payload of blocks that were written and recorded."""
    faults: int = 0
    """Operations the file system refused."""
    corruptions: int = 0
    """Blocks whose bytes failed verification."""


class FaultLog:
    """One line per kind of fault until it goes away. Safe from any thread; never blocks long."""

    def __init__(self, where: str, clock: Clock) -> None:
        self.count = 0
        self._clock = clock
        self._last_s = clock.now_s()
        self._where = where
        self._lock = threading.Lock()
        self._active: dict[str, dict[str, int]] = {}

    def report(self, operation: str, error: OSError) -> None:
        """`operation` failed."""
        kind = errno.errorcode.get(error.errno or 0, type(error).__name__)
        with self._lock:
            self.count += 1
            self._last_s = self._clock.now_s()
            kinds = self._active.setdefault(operation, {})
            kinds[kind] = kinds.get(kind, 0) + 1
            first = kinds[kind] == 1
        if first:
            logger.warning(
                "%s: %s failed (%s); blocks are missed until it works again",
                self._where,
                operation,
                str(error),  # a log record that is kept must not keep what the call held
            )

    def works(self, operation: str) -> None:
        """`operation` succeeded. Costs one dictionary lookup while nothing is wrong."""
        if operation not in self._active or self._clock.now_s() < self._last_s + QUIET_S:
            return
        with self._lock:
            kinds = self._active.pop(operation, {})
        if kinds:
            told = ", ".join(f"{kind} {times} times" for kind, times in kinds.items())
            logger.warning("%s: %s works again after %s", self._where, operation, told)
