"""How fast a check may read: others work on the same volume.

Invariant: on average no more than the bound is spent, and who has been stopped waits no longer.
"""

from typing import Final

from kvtier.clock import Clock, MonotonicClock
from kvtier.evictor.pace import RateLimiter

_NAP_S: Final = 0.25
"""How long a stop goes unheard at most."""


class Stopped(Exception):
    """The work was called off."""


class Pace:
    """Spends bytes over time. Safe from any thread."""

    def __init__(self, bytes_per_s: int | None = None, clock: Clock | None = None) -> None:
        """`bytes_per_s` None: as fast as it goes."""
        self._clock = clock or MonotonicClock()
        self._rate = RateLimiter(bytes_per_s, self._clock)
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def spend(self, count: int) -> None:
        """Wait until `count` more bytes may be read. Raises Stopped after `stop`."""
        left_s = self._rate.claim(count)
        while left_s > 0 and not self._stopped:
            nap_s = min(left_s, _NAP_S)
            self._clock.sleep(nap_s)
            left_s -= nap_s
        if self._stopped:
            raise Stopped

    def stop(self) -> None:
        """End all waiting, now and later."""
        self._stopped = True
