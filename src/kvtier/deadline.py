"""A time limit for calls that cannot be interrupted.

A call into a dead mount may never return, so the only way to go on is to leave it behind on a
thread. `within` starts a thread for each call and is meant for start-up and for commands; in the
serving path, `transfer` does the same with threads that it keeps.
"""

import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from kvtier.clock import MonotonicClock

Result = TypeVar("Result")

_SLICE_S: Final = 0.1
"""The longest single wait: a signal that arrives just before a wait is noticed only after it."""


class _Attempt(Generic[Result]):
    """A call on its own thread. Whichever side comes last discards an unwanted result."""

    def __init__(self, work: Callable[[], Result], discard: Callable[[Result], None]) -> None:
        self._work = work
        self._discard = discard
        self._lock = threading.Lock()
        self._is_abandoned = False
        self.ended = threading.Event()
        self.results: list[Result] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._call()
        finally:
            self.ended.set()

    def abandon(self) -> bool:
        """Give up waiting. Return False if the call has ended after all."""
        with self._lock:
            self._is_abandoned = not self.results and self.error is None
            return self._is_abandoned

    def _call(self) -> None:
        try:
            result = self._work()
        except BaseException as error:
            self.error = error
            return
        with self._lock:
            if not self._is_abandoned:
                self.results.append(result)
                return
        self._discard(result)


def within(seconds: float, work: Callable[[], Result], discard: Callable[[Result], None]) -> Result:
    """Return what `work` returns, or raise what it raises, within `seconds`.

    Raises TimeoutError if `work` takes longer. Then, and when the caller is interrupted (Ctrl-C),
    `work` is left behind on a daemon thread, and `discard` gets its result if it ever ends.
    """
    attempt = _Attempt(work, discard)
    clock = MonotonicClock()
    ends_s = clock.now_s() + seconds
    thread = threading.Thread(target=attempt.run, name="kvtier-opening", daemon=True)
    try:
        thread.start()
        while (left_s := ends_s - clock.now_s()) > 0:
            if attempt.ended.wait(min(left_s, _SLICE_S)):
                break
    except BaseException:
        attempt.abandon()
        raise
    if not attempt.ended.is_set() and attempt.abandon():
        raise TimeoutError(f"no answer within {seconds:g} s")
    attempt.ended.wait()
    if attempt.error is not None:
        raise attempt.error
    return attempt.results[0]
