"""Long commands that end in good order when they are told to."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """The first signal to end calls `stop`; the second ends at once, as by Ctrl-C."""

    def heard(number: int, frame: object) -> None:
        del frame
        signal.signal(number, signal.default_int_handler)
        stop()

    before = {number: signal.signal(number, heard) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
