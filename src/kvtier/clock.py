"""The only source of time, sleep, randomness and unique names in the package.

Tests and simulations replace them. ruff's banned-api therefore forbids `time`, `random`, `uuid`
and `secrets` in every other module.
"""

import os
import random
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock. Safe to use from any thread."""

    def now_s(self) -> float:
        """Return the time in seconds; it never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block the calling thread for `seconds`, or advance a virtual clock by them."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Return the seconds since an arbitrary start; changes of the wall clock do not matter."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block the calling thread for `seconds`."""
        time.sleep(seconds)


class VirtualClock:
    """A clock that moves only when it is advanced, for tests and simulations."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Advance the clock by `seconds` without waiting."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Advance the clock by `seconds`. Raises ValueError if they are negative."""
        if seconds < 0:
            raise ValueError("a monotonic clock does not go back")
        self._now_s += seconds


def wall_s() -> float:
    """Return the seconds since the epoch. For names and reports only, never for deadlines."""
    return time.time()


def perf_s() -> float:
    """Return the time in seconds of the finest monotonic timer, for measuring durations."""
    return time.perf_counter()


def seeded(seed: int) -> random.Random:
    """Return a new random generator; the same seed gives the same numbers."""
    return random.Random(seed)


def unique_id() -> str:
    """Return 32 random hex digits, unique among all processes."""
    return os.urandom(16).hex()
