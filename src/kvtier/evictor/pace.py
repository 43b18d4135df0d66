"""Not faster than so many a second: a scan must not take the storage away from engines.

Invariant: over any long stretch at most `per_second` a second pass; short bursts of a tenth of a
second are let through, so that a high rate does not sleep for every file.
"""

from typing import Final

from kvtier.clock import Clock

_BURST_S: Final = 0.1
SLEEP_MAX_S: Final = 1.0
"""The longest single sleep: a lease has to be kept meanwhile."""


class Pace:
    """One caller. `per_second` None: no limit."""

    def __init__(self, per_second: float | None, clock: Clock) -> None:
        self._each_s = 1 / per_second if per_second else 0.0
        self._clock = clock
        self._next_s = clock.now_s()

    def wait(self) -> bool:
        """Before one: sleep if it is too early. False: still too early, call again."""
        if not self._each_s:
            return True
        now_s = self._clock.now_s()
        ahead_s = self._next_s - now_s
        if ahead_s > _BURST_S:
            self._clock.sleep(min(ahead_s, SLEEP_MAX_S))
            if ahead_s > SLEEP_MAX_S:
                return False
            now_s = self._clock.now_s()
        self._next_s = max(self._next_s, now_s - _BURST_S) + self._each_s
        return True
