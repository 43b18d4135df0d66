"""The kinds of faults, and the decision at which calls the armed one strikes.

Faults are injected below the tier and not around it (as `kvtier.testing.faults` does), because the
tier's own verification is under test. They are injected into the system calls of a folder (`files`)
and into the requests of an object store (`store`), both of which ask here at every call. SIGKILL
between any two steps is the subject of `kvtier_bench.kill`.

Invariants: no fault strikes while none is armed; a hung call waits until `disarm`; with one thread,
the same seed gives the same run.
"""

import enum
import errno
import os
import threading
from typing import Final

from kvtier.clock import Clock, MonotonicClock, seeded

SLOW_S: Final = 0.001
_STEPS_S: Final = (-86_400.0, -10.0, 60.0, 86_400.0)


class FaultKind(enum.Enum):
    """A kind of fault; one kind is armed at a time."""

    SLOW = "slow"
    HUNG = "hung"
    PARTIAL = "partial batch"
    TORN_WRITE = "torn write"
    BIT_FLIP = "bit flip"
    TRUNCATED = "truncated"
    OVER_LONG = "over-long"
    STALE_LISTING = "stale listing"
    NO_SPACE = "ENOSPC"
    IO_ERROR = "EIO"
    NO_DESCRIPTORS = "EMFILE"
    NO_PERMISSION = "EACCES"
    FOLDER_REMOVED = "folder removed"
    CLOCK_STEP = "clock step"


class CallKind(enum.Flag):
    """The properties of a call below a tier that decide which errors it may get."""

    WRITES = enum.auto()
    OPENS = enum.auto()
    NAMES = enum.auto()
    MOVES = enum.auto()


_ERRORS: Final = {
    FaultKind.NO_SPACE: (errno.ENOSPC, CallKind.WRITES),
    FaultKind.IO_ERROR: (
        errno.EIO,
        CallKind.WRITES | CallKind.OPENS | CallKind.NAMES | CallKind.MOVES,
    ),
    FaultKind.NO_DESCRIPTORS: (errno.EMFILE, CallKind.OPENS),
    FaultKind.NO_PERMISSION: (errno.EACCES, CallKind.NAMES),
}


class SteppingClock:
    """A clock that jumps, as if the machine's clock were set. Safe from any thread."""

    def __init__(self) -> None:
        self._base = MonotonicClock()
        self._offset_s = 0.0

    def now_s(self) -> float:
        """Return the time in seconds, including all jumps."""
        return self._base.now_s() + self._offset_s

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        self._base.sleep(seconds)

    def step(self, seconds: float) -> None:
        """Jump by `seconds`, which may be negative."""
        self._offset_s += seconds


class Faults:
    """The armed fault, its rate, and how often it struck. Safe from any thread."""

    def __init__(self, seed: int) -> None:
        self.rng = seeded(seed)
        self.clock = SteppingClock()
        self.happened = 0
        self.hanging = threading.Event()
        """Set while a call hangs."""
        self._sleeper: Clock = MonotonicClock()
        self._lock = threading.Lock()
        self._armed: FaultKind | None = None
        self._rate = 0.0
        self._left = 0
        self._is_failing = False
        self._released = threading.Event()

    def arm(self, fault: FaultKind, rate: float, limit: int = 1 << 30) -> None:
        """Let `fault` strike calls with probability `rate`, at most `limit` times."""
        with self._lock:
            self._armed, self._rate, self._left = fault, rate, limit
            self._is_failing = False
            self._released = threading.Event()
            self.hanging.clear()

    def disarm(self) -> None:
        """Stop the faults, and let hanging calls continue."""
        with self._lock:
            self._armed = None
            self._is_failing = False
            self._released.set()

    def strikes(self, fault: FaultKind) -> bool:
        """Return True if `fault` is to strike the current call, and count it."""
        if self._armed is not fault:
            return False
        with self._lock:
            if self._armed is not fault or self._left <= 0 or self.rng.random() >= self._rate:
                return False
            self._left -= 1
            self.happened += 1
            return True

    def inject(self, call: CallKind) -> None:
        """Delay, hang or refuse a call, or step the clock, if such a fault strikes.

        Raises OSError for a refusal.
        """
        fault = self._armed
        if fault is None:
            return
        if fault is FaultKind.SLOW and self.strikes(fault):
            self._sleeper.sleep(SLOW_S)
        elif fault is FaultKind.HUNG and self.strikes(fault):
            released = self._released
            self.hanging.set()
            released.wait()
        elif fault is FaultKind.CLOCK_STEP and self.strikes(fault):
            self.clock.step(self.rng.choice(_STEPS_S))
        elif fault is FaultKind.PARTIAL and not call & CallKind.MOVES:
            self._fail_the_rest()
        elif fault in _ERRORS and call & _ERRORS[fault][1] and self.strikes(fault):
            raise refusal(_ERRORS[fault][0])

    def pick(self, count: int) -> int:
        """Return a random number below `count`."""
        with self._lock:
            return self.rng.randrange(count)

    def _fail_the_rest(self) -> None:
        """Fail this and all further calls of the batch once the fault has struck."""
        if self._is_failing or self.strikes(FaultKind.PARTIAL):
            self._is_failing = True
            raise refusal(errno.EIO)


def refusal(number: int) -> OSError:
    """Return an OSError with the operating system's message."""
    return OSError(number, os.strerror(number))
