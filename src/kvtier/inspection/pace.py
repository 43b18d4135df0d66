"""How fast a check may read: others work on the same volume.

Invariant: on average no more than the bound is spent, and who has been stopped waits no longer.
"""

import threading
from typing import Final

from kvtier.clock import Clock, MonotonicClock

_NAP_S: Final = 0.25
"""How long a stop goes unheard at most."""


class Stopped(Exception):
    """The work was called off."""


class Pace:
    """Spends bytes over time. Safe from any thread."""

    def __init__(self, bytes_per_s: int | None = None, clock: Clock | None = None) -> None:
        """`bytes_per_s` None: as fast as it goes."""
        self._bytes_per_s = bytes_per_s
        self._clock = clock or MonotonicClock()
        self._lock = threading.Lock()
        self._free_s = self._clock.now_s()
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def spend(self, count: int) -> None:
        """Wait until `count` more bytes may be read. Raises Stopped after `stop`."""
        if self._bytes_per_s is not None:
            with self._lock:
                start_s = max(self._free_s, self._clock.now_s())
                self._free_s = start_s + count / self._bytes_per_s
            while not self._stopped and (left_s := start_s - self._clock.now_s()) > 0:
                self._clock.sleep(min(left_s, _NAP_S))
        if self._stopped:
            raise Stopped

    def stop(self) -> None:
        """End all waiting, now and later."""
        self._stopped = True
