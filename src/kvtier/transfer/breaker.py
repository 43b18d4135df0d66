"""A circuit breaker: it stops calls to a tier that does not answer, and probes it after a pause.

A dead mount or an unreachable store would cost every request its whole deadline. Once a few calls
in a row have failed, or one hangs, the breaker opens, and everything that the tier could have
served is an immediate miss. After a pause, a single call probes whether the tier is back.

The breaker is a pure state machine: its owner passes the time and does the locking.
"""

import enum
from typing import Final

FAILURES: Final = 5
"""Consecutive failures that open the breaker."""
PAUSE_S: Final = 1.0
"""How long an open breaker rejects all calls; doubles with each probe that fails."""
MAX_PAUSE_S: Final = 30.0


class BreakerState(enum.Enum):
    """The states of a breaker."""

    CLOSED = "closed"
    """All calls pass."""
    HALF_OPEN = "half_open"
    """One call may pass, to probe whether the tier is back."""
    OPEN = "open"
    """No call passes."""


class Breaker:
    """The breaker of one kind of call to one tier.

    Not thread-safe. `now_s` is any monotonic time in seconds.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._pause_s = PAUSE_S
        self._open_until_s: float | None = None
        self._is_probing = False

    def state(self, now_s: float) -> BreakerState:
        """Return the state. No side effects."""
        if self._open_until_s is None:
            return BreakerState.CLOSED
        is_due = now_s >= self._open_until_s
        return BreakerState.HALF_OPEN if is_due or self._is_probing else BreakerState.OPEN

    def admits(self, now_s: float) -> bool:
        """Return True if a call may begin now; then `succeeded` or `failed` must follow."""
        if self._open_until_s is None:
            return True
        if self._is_probing or now_s < self._open_until_s:
            return False
        self._is_probing = True
        return True

    def succeeded(self) -> None:
        """Record that a call was answered."""
        self._failures = 0
        self._pause_s = PAUSE_S
        self._open_until_s = None
        self._is_probing = False

    def failed(self, now_s: float) -> None:
        """Record that a call failed."""
        self._failures += 1
        if self._is_probing:
            self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
            self._open(now_s)
        elif self._failures >= FAILURES and self._open_until_s is None:
            self._open(now_s)

    def hung(self, now_s: float) -> None:
        """Record that a call takes longer than any may, which opens the breaker at once."""
        if self._open_until_s is None or self._is_probing:
            self._open(now_s)

    def _open(self, now_s: float) -> None:
        self._open_until_s = now_s + self._pause_s
        self._is_probing = False
