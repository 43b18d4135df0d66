"""When a fault strikes: one armed fault, a seed and a rate, shared by both seams below a tier.

Why below the tier and not around it (as `testing.faults`): what is put to the test is the tier's
own verification. The seams are the system calls of a folder (`matrix.files`) and the requests
of a bucket (`matrix.store`); each asks here at every call. Two faults befall no call of a tier
and are not here: kill -9 between any two steps, which `bench.kill` does to whole processes, and
events that come twice or out of order, which are for their readers to survive.

Invariants: nothing strikes while nothing is armed; a hung call waits until `disarm`; with one
thread, one seed gives one run.
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
    """What goes wrong, one kind at a time."""

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
    """What a call below a tier does, as far as it decides which errors it may meet."""

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
    """The monotonic clock of a machine whose clock is set while we run. Any thread."""

    def __init__(self) -> None:
        self._base = MonotonicClock()
        self._offset_s = 0.0

    def now_s(self) -> float:
        """Seconds; jumps by what `step` was given."""
        return self._base.now_s() + self._offset_s

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        self._base.sleep(seconds)

    def step(self, seconds: float) -> None:
        """Jump, backwards too."""
        self._offset_s += seconds


class Faults:
    """The armed fault. Safe from any thread."""

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
        """From now on `fault` strikes calls with a chance of `rate`, at most `limit` times."""
        with self._lock:
            self._armed, self._rate, self._left = fault, rate, limit
            self._is_failing = False
            self._released = threading.Event()
            self.hanging.clear()

    def disarm(self) -> None:
        """Nothing strikes any more, and what hangs goes on."""
        with self._lock:
            self._armed = None
            self._is_failing = False
            self._released.set()

    def strikes(self, fault: FaultKind) -> bool:
        """Whether `fault` befalls the call that asks."""
        if self._armed is not fault:
            return False
        with self._lock:
            if self._armed is not fault or self._left <= 0 or self.rng.random() >= self._rate:
                return False
            self._left -= 1
            self.happened += 1
            return True

    def suffer(self, call: CallKind) -> None:
        """What may befall any call: time, the clock, refusals. Raises OSError, or hangs."""
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
        """A number below `count`."""
        with self._lock:
            return self.rng.randrange(count)

    def _fail_the_rest(self) -> None:
        """Once it struck, no further call of the batch succeeds."""
        if self._is_failing or self.strikes(FaultKind.PARTIAL):
            self._is_failing = True
            raise refusal(errno.EIO)


def refusal(number: int) -> OSError:
    """As the operating system words it."""
    return OSError(number, os.strerror(number))
