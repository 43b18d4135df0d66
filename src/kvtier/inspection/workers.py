"""Threads and a throttle for commands that can be stopped at any time, even while storage hangs.

Executors of the standard library do not fit: Python joins their threads at exit, and a thread that
is blocked in a dead mount never returns. These threads are daemons and are abandoned.

Invariants: work starts in the order in which it was submitted. After a stop, the caller waits for
running work at most GRACE_S.
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
"""The longest single sleep, and so the longest delay until a stop is noticed."""
GRACE_S: Final = 5.0
"""Time for running work to finish after a stop."""
_NAPS: Final = int(GRACE_S / _NAP_S)
_AHEAD: Final = 4
"""Work items per thread that `begin` submits ahead of the one that is consumed."""
_Result = TypeVar("_Result")


class Stopped(Exception):
    """The work was stopped before it was complete."""


class Throttle:
    """A limit on the read rate, through which the work can also be stopped. Safe from any thread.

    An evictor waits by itself (`evictor.pace`), because it has to renew its leases meanwhile.
    """

    def __init__(self, bytes_per_s: int | None = None, clock: Clock | None = None) -> None:
        """Allow `bytes_per_s` on average; None: no limit."""
        self._clock = clock or MonotonicClock()
        self._rate = RateLimiter(bytes_per_s, self._clock)
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def spend(self, count: int) -> None:
        """Wait until `count` more bytes may be read. Raises Stopped once `stop` was called."""
        left_s = self._rate.claim(count)
        while left_s > 0 and not self._stopped:
            nap_s = min(left_s, _NAP_S)
            self._clock.sleep(nap_s)
            left_s -= nap_s
        if self._stopped:
            raise Stopped

    def stop(self) -> None:
        """Stop the work: every current and later `spend` raises Stopped."""
        self._stopped = True


class Workers:
    """A pool of daemon threads, used as a context manager. One thread submits and waits."""

    def __init__(
        self, count: int, name: str, throttle: Throttle, grace_s: float | None = None
    ) -> None:
        """Prepare `count` threads, which `throttle` stops. `grace_s` None: GRACE_S."""
        self._throttle = throttle
        self._naps = _NAPS if grace_s is None else int(grace_s / _NAP_S)
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
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
        """End the threads: discard queued work and abandon threads that hang.

        After a KeyboardInterrupt, do not wait for any of them.
        """
        self._discard_queued()
        for _ in self._threads:
            self._tasks.put(None)
        naps = 0 if kind is KeyboardInterrupt else self._naps
        for thread in self._threads:
            while thread.is_alive() and naps > 0:
                thread.join(_NAP_S)
                naps -= 1

    def submit(self, work: Callable[[], _Result]) -> "Future[_Result]":
        """Queue `work` for the threads and return its future."""
        future: Future[_Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work()
            except BaseException as error:  # raised again by `result`
                future.set_exception(error)
            else:
                future.set_result(result)

        self._tasks.put(run)
        return future

    def begin(self, works: Iterable[Callable[[], _Result]]) -> "Iterator[Future[_Result]]":
        """Yield the futures of `works` in order, submitting some ahead to keep all threads busy."""
        begun: deque[Future[_Result]] = deque()
        for work in works:
            begun.append(self.submit(work))
            if len(begun) > len(self._threads) * _AHEAD:
                yield begun.popleft()
        yield from begun

    def result(self, future: "Future[_Result]") -> _Result:
        """Wait for a result. Raises what the work raised, or Stopped if it hangs after a stop."""
        naps = self._naps
        while not wait([future], _NAP_S).done:
            if not self._throttle.stopped:
                continue
            naps -= 1
            if naps <= 0:
                self._naps = 0  # the storage hangs: do not wait again
                raise Stopped
        return future.result()

    def _discard_queued(self) -> None:
        try:
            while True:
                self._tasks.get_nowait()
        except queue.Empty:
            return

    def _work(self) -> None:
        while (run := self._tasks.get()) is not None:
            run()
