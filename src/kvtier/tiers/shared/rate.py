"""Not more than so much a second: whoever scans, checks or cleans a store leaves it to engines.

Why it does not sleep: an evictor has to keep its leases while it waits, and a check has to hear
that a person stopped it. They sleep themselves, as long as they are told to.

Invariant: over any long stretch no more than `per_second` a second is let through; time in which
nothing was asked for is not saved up, but for a burst of `burst_s`.
"""

import threading

from kvtier.clock import Clock


class Rate:
    """Of anything that can be counted. Safe from any thread."""

    def __init__(self, per_second: float | None, clock: Clock, burst_s: float = 0.0) -> None:
        """`per_second` None: no limit."""
        self._each_s = 1 / per_second if per_second else 0.0
        self._clock = clock
        self._burst_s = burst_s
        self._lock = threading.Lock()
        self._next_s = clock.now_s()

    def claim(self, count: float = 1) -> float:
        """Take `count` and return the seconds to wait before they may be used."""
        if not self._each_s:
            return 0.0
        with self._lock:
            now_s = self._clock.now_s()
            start_s = max(self._next_s, now_s - self._burst_s)
            self._next_s = start_s + count * self._each_s
        return max(start_s - now_s, 0.0)
