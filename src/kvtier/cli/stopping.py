"""Commands that a signal stops at any time, also while a call into storage hangs.

A thread that waits for a dead mount or inside a native client handles no signals. So the work of
such a command runs on a worker thread, and the main thread handles the signals.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import click

from kvtier.errors import KVTierError
from kvtier.inspection.workers import Stopped, Throttle, Workers

Result = TypeVar("Result")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOTICE_S: Final = 1.0
"""A command that takes longer than this to stop says so."""


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call `stop` on the first SIGINT, SIGTERM or SIGHUP; raise KeyboardInterrupt on the second.

    Yields the list of the signals received so far. If the block has not ended a second after the
    first one, a line on stderr says how to end the command at once. The previous handlers are
    restored at the end. For the main thread.
    """
    received: list[int] = []
    notice = threading.Timer(
        _NOTICE_S, click.echo, ("stopping; press Ctrl-C again to end at once",), {"err": True}
    )
    notice.daemon = True

    def handle(number: int, frame: object) -> None:
        del frame
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        notice.start()
        stop()

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield received
    finally:
        notice.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopper:
    """Runs work that a signal stops through `throttle`, which the work has to check."""

    def __init__(self, throttle: Throttle | None = None) -> None:
        self.throttle = throttle or Throttle()
        self.signal: int | None = None
        """The signal that stopped the work; None if there was none."""

    def run(self, work: Callable[[], Result], name: str, grace_s: float | None = None) -> Result:
        """Return what `work` returns, or raise what it raises.

        Raises Stopped if `work` does not end within `grace_s` after a signal (by default
        `workers.GRACE_S`), or fails after it. `name` is that of the thread.
        """
        with (
            stopping(self.throttle.stop) as received,
            Workers(1, name, self.throttle, grace_s) as workers,
        ):
            try:
                return workers.result(workers.submit(work))
            except (KVTierError, OSError, click.ClickException):
                if received:
                    raise Stopped from None
                raise
            finally:
                self.signal = received[0] if received else None
