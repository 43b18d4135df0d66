"""Waiting for a rate, a little at a time: a lease has to be kept meanwhile.

Invariant: no single sleep is longer than SLEEP_MAX_S; what is due within a tenth of a second is
let through, so that a high rate does not sleep for every file.
"""

from typing import Final

from kvtier.clock import Clock
from kvtier.tiers.shared.rate import Rate

_BURST_S: Final = 0.1
SLEEP_MAX_S: Final = 1.0
"""The longest single sleep."""


class Pace:
    """One caller. `per_second` None: no limit."""

    def __init__(self, per_second: float | None, clock: Clock) -> None:
        self._rate = Rate(per_second, clock, _BURST_S)
        self._clock = clock
        self._left_s = 0.0
        """To be waited for, of what was claimed."""

    def wait(self) -> bool:
        """Before one: sleep if it is too early. False: still too early, call again."""
        if self._left_s <= 0:
            self._left_s = self._rate.claim()
            if self._left_s <= _BURST_S:
                self._left_s = 0.0
                return True
        step_s = min(self._left_s, SLEEP_MAX_S)
        self._clock.sleep(step_s)
        self._left_s -= step_s
        return self._left_s <= 0
