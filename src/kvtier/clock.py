"""Time, sleep, randomness and unique names come from here and from nowhere else.

So that a simulator can own them: ruff's banned-api forbids `time`, `random`, `uuid` and
`secrets` in every other module of the package.
"""

import os
import random
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic time in seconds. Safe from any thread."""

    def now_s(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block the calling thread (real time) or advance (virtual time)."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Seconds since an arbitrary start; immune to wall-clock steps."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        time.sleep(seconds)


class VirtualClock:
    """A clock that stands still until it is told to move; for tests and simulations."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Advance by `seconds` at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move forward; negative steps are refused, a monotonic clock has none."""
        if seconds < 0:
            raise ValueError("a monotonic clock does not go back")
        self._now_s += seconds


def wall_s() -> float:
    """Seconds since the epoch. For names and reports only, never for deadlines."""
    return time.time()


def perf_s() -> float:
    """The finest monotonic timer, for measuring durations."""
    return time.perf_counter()


def seeded(seed: int) -> random.Random:
    """A private random source: the same seed gives the same run."""
    return random.Random(seed)


def unique_id() -> str:
    """32 hex digits that no other process has."""
    return os.urandom(16).hex()
