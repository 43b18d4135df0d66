"""A bound on the time that a call may take which cannot be interrupted.

Why: a call into a dead mount never returns, and nothing but another thread can leave it alone.
For start-up only: while serving, `transfer` does this without a thread a call.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class _Attempt(Generic[Result]):
    """A call on a thread of its own. Whoever is late cleans up: the call or its caller."""

    def __init__(self, work: Callable[[], Result], discard: Callable[[Result], None]) -> None:
        self._work = work
        self._discard = discard
        self._lock = threading.Lock()
        self._is_abandoned = False
        self.results: list[Result] = []
        self.error: BaseException | None = None

    def run(self) -> None:
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

    def abandon(self) -> bool:
        """Nobody waits any more. False if it has ended after all."""
        with self._lock:
            self._is_abandoned = not self.results and self.error is None
            return self._is_abandoned


def within(seconds: float, work: Callable[[], Result], discard: Callable[[Result], None]) -> Result:
    """What `work` returns or raises; TimeoutError if it has not ended after `seconds`.

    It is then left alone on a daemon thread, and `discard` gets its result should it ever end.
    """
    attempt = _Attempt(work, discard)
    thread = threading.Thread(target=attempt.run, name="kvtier-opening", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive() and attempt.abandon():
        raise TimeoutError(f"no answer within {seconds:g} s")
    thread.join()
    if attempt.error is not None:
        raise attempt.error
    return attempt.results[0]
