"""Cores for kvtier's own threads: those the engine does not compute on.

The engine binds its computing threads to cores, its main thread among them, and a new thread
inherits that: copies and I/O would take turns with the computation. What the parent process
may use and this thread may not is free for us.
"""

import logging
import os
from collections.abc import Callable

_log = logging.getLogger(__name__)


def free_cores() -> frozenset[int]:
    """Cores beside the engine's, or none: then stay where the caller is."""
    if os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind":
        return frozenset()
    try:
        allowed = frozenset(os.sched_getaffinity(os.getppid()))
    except OSError:
        return frozenset()
    return allowed - frozenset(os.sched_getaffinity(0))


def free_cores_setter() -> Callable[[], None]:
    """A function that moves the thread that calls it to the free cores, found now."""
    cores = free_cores()

    def move() -> None:
        if cores:
            try:
                os.sched_setaffinity(0, cores)
            except OSError as error:
                _log.info("kvtier: a thread stays on the engine's cores: %s", error)

    return move
