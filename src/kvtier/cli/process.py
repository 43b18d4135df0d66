"""What a command does with its process: how it exits, and the event loop of a server."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from typing import Any, Final, NoReturn

from kvtier.clock import MonotonicClock

EXIT_INTERRUPTED: Final = 130
"""What shells report for a process that SIGINT ended."""

_ABANDONED_S: Final = 1.0
"""How long an exiting process waits for threads that are still in a call."""
_YOUNG_OBJECTS: Final = 20_000
"""Allocations between two collections of the youngest generation (CPython's default: 700)."""


def interrupt_on_sigint() -> None:
    """Let SIGINT raise KeyboardInterrupt, also in a process that inherited it as ignored.

    Shells start background jobs with SIGINT ignored, and Python leaves it so: such a command
    would not react to `kill -INT` or to the Ctrl-C that ends the script around it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_process(code: int) -> NoReturn:
    """Exit with `code`, as `sys.exit` does, but without waiting for calls that hang.

    Daemon threads that were left behind in a call get a second to clean up after themselves. If
    one is still there, the process ends without finalizing the interpreter: a thread that returned
    from native code into an interpreter being finalized would abort the process.
    """
    clock = MonotonicClock()
    ends_s = clock.now_s() + _ABANDONED_S
    while (abandoned := _abandoned_threads()) and clock.now_s() < ends_s:
        abandoned[0].join(ends_s - clock.now_s())
    if not abandoned:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _abandoned_threads() -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if thread.daemon and thread.name.startswith("kvtier-")
    ]


def run_server(main: Coroutine[Any, Any, int]) -> int:
    """Run `main` to its end as `asyncio.run` does, on uvloop if it is installed.

    uvloop saves a quarter of the CPU time per request. The garbage collector is tuned too: modules
    that a server has imported never become garbage, and requests leave no reference cycles, so
    frequent collections would only add latency.
    """
    import asyncio  # only servers need it, and it takes 40 ms

    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
