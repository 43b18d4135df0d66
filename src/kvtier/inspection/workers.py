"""Threads for a command that a person may end at any time, also while storage hangs.

Why not an executor of the standard library: Python waits for its threads before it ends, and a
thread that a dead mount holds never comes back. These are left behind.

Invariants: work begins in the order in which it was asked for; who is stopped waits GRACE_S for
what is under way, and no longer.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Final, Self, TypeVar

from kvtier.clock import Clock, MonotonicClock
from kvtier.evictor.pace import RateLimiter

_NAP_S: Final = 0.25
"""How long a stop goes unheard at most."""


class Stopped(Exception):
    """The work was called off."""


class Throttle:
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


GRACE_S: Final = 5.0
"""What was begun when a stop was heard may take so long to end."""


_NAPS: Final = int(GRACE_S / _NAP_S)


_AHEAD: Final = 4


_Result = TypeVar("_Result")


class Workers:
    """Use it in a `with`. For one thread that asks."""

    def __init__(self, count: int, name: str, pace: Throttle, grace_s: float | None = None) -> None:
        """`pace` tells whether the work was called off. `grace_s` None: GRACE_S."""
        self._pace = pace
        self._naps = _NAPS if grace_s is None else int(grace_s / _NAP_S)
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]

    def __enter__(self) -> Self:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them; what was not begun never is, and a thread that hangs is left behind.

        Whoever insists by another Ctrl-C waits for none of them.
        """
        self._forget()
        for _ in self._threads:
            self._asked.put(None)
        naps = 0 if kind is KeyboardInterrupt else self._naps
        for thread in self._threads:
            while thread.is_alive() and naps > 0:
                thread.join(_NAP_S)
                naps -= 1

    def submit(self, work: Callable[[], _Result]) -> "Future[_Result]":
        """Have `work` done by a thread, once those before it have begun."""
        future: Future[_Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work()
            except BaseException as error:  # whoever asks for the result gets it
                future.set_exception(error)
            else:
                future.set_result(result)

        self._asked.put(run)
        return future

    def begin(self, works: Iterable[Callable[[], _Result]]) -> "Iterator[Future[_Result]]":
        """Futures of all, in order; some of them ahead, so that no thread waits for its next."""
        begun: deque[Future[_Result]] = deque()
        for work in works:
            begun.append(self.submit(work))
            if len(begun) > len(self._threads) * _AHEAD:
                yield begun.popleft()
        yield from begun

    def result(self, future: "Future[_Result]") -> _Result:
        """Wait for it. Raises what the work raised; Stopped where a stop cuts the waiting short."""
        naps = self._naps
        while not wait([future], _NAP_S).done:
            if not self._pace.stopped:
                continue
            naps -= 1
            if naps <= 0:
                self._naps = 0  # it hangs: nobody waits for it again
                raise Stopped
        return future.result()

    def _forget(self) -> None:
        try:
            while True:
                self._asked.get_nowait()
        except queue.Empty:
            return

    def _work(self) -> None:
        while (run := self._asked.get()) is not None:
            run()
