"""The counts of a cell of the matrix, and calls that must neither raise nor hang.

Invariants: a call that does not return within DEADLINE_S counts as a hang and is abandoned; an
exception that a transfer thread catches and logs counts as an exception.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self, TypeVar

from kvtier.blocks.key import BlockKey
from kvtier.tiers.base import BlockMove, Outcome
from kvtier_bench.faults.places import is_right

DEADLINE_S: Final = 5.0
"""Far above the duration of any call on a busy machine."""

_Result = TypeVar("_Result")


class Tally:
    """The counts of one cell, which only grow.

    Counts of concurrent threads may get lost, but a count of zero means that nothing was counted.
    """

    def __init__(self) -> None:
        self.operations = 0
        self.wrong_bytes = 0
        self.hangs = 0
        self.exceptions = 0
        self.over_bound = 0
        self.outcomes: Counter[str] = Counter()
        self.first_exception = ""

    def count(self, outcomes: Sequence[Outcome], expected: int) -> None:
        """Count the outcomes of a batch of `expected` blocks."""
        self.outcomes.update(outcome.name for outcome in outcomes)
        if len(outcomes) != expected:
            self.count_failure(f"{len(outcomes)} outcomes for {expected} blocks")

    def check_read(self, moves: Sequence[BlockMove], outcomes: Sequence[Outcome]) -> None:
        """Check the bytes of every block whose outcome is DONE."""
        for move, outcome in zip(moves, outcomes, strict=False):
            if outcome is Outcome.DONE:
                self.check_block(move)

    def check_block(self, move: BlockMove) -> None:
        """Check the bytes of a block that was given to the caller."""
        self.wrong_bytes += not is_right(move.key, move.buffer)

    def check_bound(self, blocks: int, capacity_blocks: int) -> None:
        """Check that the number of known blocks is within its bound."""
        self.over_bound += blocks > capacity_blocks

    def check_listing(self, keys: Sequence[BlockKey], written: Sequence[BlockKey]) -> None:
        """Check that a listing, which may be outdated, contains only keys that were written."""
        self.wrong_bytes += len(set(keys).difference(written))

    def count_failure(self, what: str) -> None:
        """Count an exception or another failure, and keep the first one's text."""
        self.exceptions += 1
        self.first_exception = self.first_exception or what


class Caller:
    """A thread that makes calls, so that a hanging call can be abandoned."""

    def __init__(
        self, tally: Tally, release: Callable[[], None], deadline_s: float = DEADLINE_S
    ) -> None:
        """Call `release` to end hanging calls."""
        self._tally = tally
        self._deadline_s = deadline_s
        self._release = release
        self._pool = ThreadPoolExecutor(1)

    def call(self, work: Callable[[], _Result]) -> _Result | None:
        """Return the result of `work`; None, and a count, if it raises or does not return."""
        try:
            return self._pool.submit(work).result(self._deadline_s)
        except TimeoutError:
            self._tally.hangs += 1
            self._release()
            self._pool.shutdown(wait=False)
            self._pool = ThreadPoolExecutor(1)
        except Exception as error:  # no exception may leave the tier
            self._tally.count_failure(repr(error))
        return None

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=False)


class LoggedErrors(logging.Handler):
    """A context in which errors that kvtier logs are counted, and its logs are not displayed."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(logging.ERROR)
        self._tally = tally
        self._logger = logging.getLogger("kvtier")
        self._was_propagating = True

    def emit(self, record: logging.LogRecord) -> None:
        """Count the record as a failure."""
        self._tally.count_failure(record.getMessage())

    def __enter__(self) -> Self:
        self._was_propagating, self._logger.propagate = self._logger.propagate, False
        self._logger.addHandler(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._was_propagating
