"""Loops over the cases of a test, with failures that name their case."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def case(*named: object) -> Iterator[None]:
    """Add the names of a case to any exception, so that a loop shows which case has failed."""
    try:
        yield
    except BaseException as error:
        error.add_note("case: " + ", ".join(str(name) for name in named))
        raise
