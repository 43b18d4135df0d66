"""What is counted in a cell of the matrix, and calls that may neither raise nor hang.

Invariants: every outcome is one of the tier's own words; a call that does not return within
DEADLINE_S is a hang and is left behind; what a transfer thread swallows is an exception too.
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
"""Far above what any call takes on a busy machine, far below patience."""

_Result = TypeVar("_Result")


class Tally:
    """Counts of one cell. Counters only grow.

    Where two threads count at once some are lost; zero stays zero only if nobody counted.
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
        """The answer to a batch of `expected` blocks."""
        self.outcomes.update(outcome.name for outcome in outcomes)
        if len(outcomes) != expected:
            self.fails(f"{len(outcomes)} outcomes for {expected} blocks")

    def judge(self, moves: Sequence[BlockMove], outcomes: Sequence[Outcome]) -> None:
        """DONE has to be right."""
        for move, outcome in zip(moves, outcomes, strict=False):
            if outcome is Outcome.DONE:
                self.given(move)

    def given(self, move: BlockMove) -> None:
        """Bytes that somebody may use."""
        self.wrong_bytes += not is_right(move.key, move.buffer)

    def known(self, blocks: int, capacity_blocks: int) -> None:
        """What is known may not outgrow its bound."""
        self.over_bound += blocks > capacity_blocks

    def listed(self, keys: Sequence[BlockKey], written: Sequence[BlockKey]) -> None:
        """A listing may be late; what nobody ever wrote is wrong."""
        self.wrong_bytes += len(set(keys).difference(written))

    def fails(self, what: str) -> None:
        """Something came out that may not."""
        self.exceptions += 1
        self.first_exception = self.first_exception or what


class Caller:
    """Makes calls in a thread of its own, so that one that hangs can be left behind."""

    def __init__(
        self, tally: Tally, release: Callable[[], None], deadline_s: float = DEADLINE_S
    ) -> None:
        """`release` lets go what hangs."""
        self._tally = tally
        self._deadline_s = deadline_s
        self._release = release
        self._pool = ThreadPoolExecutor(1)

    def call(self, work: Callable[[], _Result]) -> _Result | None:
        """The result; None and a count where `work` raised or did not return."""
        try:
            return self._pool.submit(work).result(self._deadline_s)
        except TimeoutError:
            self._tally.hangs += 1
            self._release()
            self._pool.shutdown(wait=False)
            self._pool = ThreadPoolExecutor(1)
        except Exception as error:  # whatever it is, it may not come out
            self._tally.fails(repr(error))
        return None

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=False)


class Swallowed(logging.Handler):
    """Counts what kvtier logs as an error while it is entered, and keeps its logs off screen."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(logging.ERROR)
        self._tally = tally
        self._logger = logging.getLogger("kvtier")
        self._was_told = True

    def emit(self, record: logging.LogRecord) -> None:
        """An exception that a thread met, or worse."""
        self._tally.fails(record.getMessage())

    def __enter__(self) -> Self:
        self._was_told, self._logger.propagate = self._logger.propagate, False
        self._logger.addHandler(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._was_told
