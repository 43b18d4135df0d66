"""A rate limiter, and waiting for it in short sleeps, so that an evictor can keep its leases.

The limiter itself never sleeps: an evictor has to keep its leases while it waits, and a check has
to notice that a user stopped it. The caller sleeps as long as `RateLimiter.claim` says.

Invariants: no single sleep is longer than SLEEP_MAX_S; a unit that is due within a tenth of a
second is let through, so that a high rate does not cause a sleep per file.
"""

import threading
from typing import Final

from kvtier.clock import Clock

_BURST_S: Final = 0.1
SLEEP_MAX_S: Final = 1.0
"""The longest single sleep."""


class RateLimiter:
    """A limit on how many bytes, files or other units a second are used. Safe from any thread.

    Over any long stretch no more than `per_second` a second is let through. Time in which nothing
    was claimed is not saved up, except for a burst of `burst_s`.
    """

    def __init__(self, per_second: float | None, clock: Clock, burst_s: float = 0.0) -> None:
        """Start without a backlog. `per_second` None: no limit."""
        self._each_s = 1 / per_second if per_second else 0.0
        self._clock = clock
        self._burst_s = burst_s
        self._lock = threading.Lock()
        self._next_s = clock.now_s()

    def claim(self, count: float = 1) -> float:
        """Claim `count` units and return the seconds to wait before they may be used."""
        if not self._each_s:
            return 0.0
        with self._lock:
            now_s = self._clock.now_s()
            start_s = max(self._next_s, now_s - self._burst_s)
            self._next_s = start_s + count * self._each_s
        return max(start_s - now_s, 0.0)


class RateWaiter:
    """A rate limit for one caller, which waits for it in short sleeps."""

    def __init__(self, per_second: float | None, clock: Clock) -> None:
        """Start without a backlog. `per_second` None: no limit."""
        self._rate = RateLimiter(per_second, clock, _BURST_S)
        self._clock = clock
        self._left_s = 0.0
        """The rest of the time to wait for the claimed unit."""

    def wait(self) -> bool:
        """Sleep for a while if it is too early; return False if it still is, to call again."""
        if self._left_s <= 0:
            self._left_s = self._rate.claim()
            if self._left_s <= _BURST_S:
                self._left_s = 0.0
                return True
        step_s = min(self._left_s, SLEEP_MAX_S)
        self._clock.sleep(step_s)
        self._left_s -= step_s
        return self._left_s <= 0
