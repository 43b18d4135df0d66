"""A breaker: stops asking a tier that does not answer, and tries again after a while.

Why: a dead mount or an unreachable store would cost every request its whole deadline. Once a
few calls in a row have failed, or one hangs, the tier is left alone and everything it might
have served is a miss at once; then a single call probes whether it is back.

A state machine without a clock, a thread or a lock of its own: its owner brings all three.
"""

import enum
from typing import Final

FAILURES: Final = 5
"""Calls in a row that fail before the breaker opens."""
PAUSE_S: Final = 1.0
"""Time for which an open breaker lets nothing pass; doubles with each probe that fails."""
MAX_PAUSE_S: Final = 30.0


class BreakerState(enum.Enum):
    """Whether calls pass."""

    CLOSED = "closed"
    """All do."""
    HALF_OPEN = "half_open"
    """One does, to see whether the tier is back."""
    OPEN = "open"
    """None does."""


class Breaker:
    """For one kind of call to one tier. Not thread-safe. `now_s` is any monotonic time."""

    def __init__(self) -> None:
        self._failures = 0
        self._pause_s = PAUSE_S
        self._open_until_s: float | None = None
        self._is_probing = False

    def state(self, now_s: float) -> BreakerState:
        """The state; no side effects."""
        if self._open_until_s is None:
            return BreakerState.CLOSED
        is_due = now_s >= self._open_until_s
        return BreakerState.HALF_OPEN if is_due or self._is_probing else BreakerState.OPEN

    def admits(self, now_s: float) -> bool:
        """Whether a call may begin now; if so, `succeeded` or `failed` must follow it."""
        if self._open_until_s is None:
            return True
        if self._is_probing or now_s < self._open_until_s:
            return False
        self._is_probing = True
        return True

    def succeeded(self) -> None:
        """A call was answered: the tier is there."""
        self._failures = 0
        self._pause_s = PAUSE_S
        self._open_until_s = None
        self._is_probing = False

    def failed(self, now_s: float) -> None:
        """A call was refused."""
        self._failures += 1
        if self._is_probing:
            self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
            self._open(now_s)
        elif self._failures >= FAILURES and self._open_until_s is None:
            self._open(now_s)

    def hung(self, now_s: float) -> None:
        """A call is under way for longer than any may take: do not wait for more evidence."""
        if self._open_until_s is None or self._is_probing:
            self._open(now_s)

    def _open(self, now_s: float) -> None:
        self._open_until_s = now_s + self._pause_s
        self._is_probing = False
