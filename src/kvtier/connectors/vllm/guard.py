"""A bug of ours must not stop the engine: log it once, and serve misses from then on.

Operational faults never get here, the cache turns them into misses itself. What does get here
is a broken assumption. The cache's state can no longer be trusted then, so it is not asked
again: every lookup misses, nothing is stored, and the engine computes as if kvtier were off.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class Guarded(Protocol):
    """An object with guarded methods."""

    is_broken: bool
    """True once a guarded method has failed: miss-only mode, until the engine restarts."""


S = TypeVar("S", bound=Guarded)


def guarded(
    fallback: Callable[[S], R],
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Answer `fallback(self)` where the method fails, and ever after. ~0.1 us a call."""

    def decorate(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(method)
        def call(self: S, /, *args: P.args, **named: P.kwargs) -> R:
            if self.is_broken:
                return fallback(self)
            try:
                return method(self, *args, **named)
            except Exception:
                self.is_broken = True
                _log.exception(
                    "kvtier has a bug in %s and serves only misses until the engine restarts; "
                    "please report this",
                    method.__name__,
                )
                return fallback(self)

        return call

    return decorate


def nothing(_: Any) -> None:
    """The fallback of methods that return nothing."""
