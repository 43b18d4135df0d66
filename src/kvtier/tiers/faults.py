"""A log of I/O faults that does not repeat itself.

A broken device fails thousands of times a second. Each kind of fault (operation and errno) is
logged when it appears, and once more when the operation has worked for QUIET_S without it; in
between only a counter is incremented. The delay keeps one bad sector among good ones from filling
the log.
"""

import errno
import logging
import threading

import msgspec

from kvtier.clock import Clock

logger = logging.getLogger(__name__)

QUIET_S = 30.0
"""A fault is over when the operation succeeds and none was reported for this long."""


class TierIO(msgspec.Struct, kw_only=True):
    """Counters of a tier's work since it was opened."""

    bytes_read: int = 0
    """Payload bytes of the blocks that were read and verified."""
    bytes_written: int = 0
    """Payload bytes of the blocks that were written and recorded."""
    faults: int = 0
    """The number of operations that the file system refused."""
    corruptions: int = 0
    """The number of blocks whose bytes failed verification."""


class FaultLog:
    """A log of faults with one line per kind of fault, and one when it is over.

    Safe from any thread; never blocks for long. `where` names the tier in the messages.
    """

    def __init__(self, where: str, clock: Clock) -> None:
        self.count = 0
        self._clock = clock
        self._last_s = clock.now_s()
        self._where = where
        self._lock = threading.Lock()
        self._active: dict[str, dict[str, int]] = {}

    def report(self, operation: str, error: OSError) -> None:
        """Count a failure of `operation`, and log it if it is the first of its kind."""
        kind = errno.errorcode.get(error.errno or 0, type(error).__name__)
        with self._lock:
            self.count += 1
            self._last_s = self._clock.now_s()
            kinds = self._active.setdefault(operation, {})
            kinds[kind] = kinds.get(kind, 0) + 1
            first = kinds[kind] == 1
        if first:
            logger.warning(
                "%s: %s failed (%s); its blocks count as misses until it works again",
                self._where,
                operation,
                str(error),  # a kept log record must not keep the exception's frames alive
            )

    def succeeded(self, operation: str) -> None:
        """Note that `operation` succeeded; costs one dictionary lookup while nothing is wrong."""
        if operation not in self._active or self._clock.now_s() < self._last_s + QUIET_S:
            return
        with self._lock:
            kinds = self._active.pop(operation, {})
        if kinds:
            summary = ", ".join(f"{kind} {times} times" for kind, times in kinds.items())
            logger.warning("%s: %s works again after %s", self._where, operation, summary)
