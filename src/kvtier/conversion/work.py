"""The work of a conversion, block by block: what a job is, and running many of them.

Invariants: a job that began is waited for, unless storage hangs, so that every result is counted;
who stops a run, or limits it, gets whole blocks and nothing half-done.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from kvtier.conversion.report import Conversion
from kvtier.inspection.pace import Pace, Stopped
from kvtier.inspection.view import printable
from kvtier.inspection.workers import Workers

THREADS: Final = 4
_BATCH: Final = 64


class Result(NamedTuple):
    """What became of one block. `kind`: converted, existed, or one of REFUSALS."""

    file: str
    kind: str
    block_bytes: int = 0
    """Where it was converted."""
    reason: str = ""


Job = Callable[[], Result]
"""Converts one block. Blocks; raises OSError where the destination refuses, or nobody answers."""


def run_jobs(
    jobs: Iterator[tuple[float, Job]],
    report: Conversion,
    pace: Pace,
    told: Callable[[Conversion, float], None],
    limit: int | None = None,
) -> None:
    """Run all, count them in `report`, and tell after some dozens. Raises what a job raises.

    At most `limit` blocks are converted. Ends early, and not complete, after `pace.stop()`.
    """
    with Workers(THREADS, "kvtier-convert", pace) as workers:
        while not pace.stopped:
            room = _BATCH if limit is None else min(_BATCH, limit - report.converted)
            batch = list(islice(jobs, room)) if room > 0 else []
            if not batch:
                report.limited = room <= 0 and next(jobs, None) is not None
                report.complete = not report.limited
                return
            asked = [workers.submit(job) for _, job in batch]
            try:
                for number, future in enumerate(asked):
                    if pace.stopped:
                        for later in asked[number:]:
                            later.cancel()
                    if not future.cancelled():
                        _count(report, workers.result(future))
            except Stopped:
                return
            told(report, batch[-1][0])


def _count(report: Conversion, result: Result) -> None:
    if result.kind == "converted":
        report.converted += 1
        report.bytes += result.block_bytes
    elif result.kind == "existed":
        report.existed += 1
    else:
        report.refuse(printable(result.file), result.kind, result.reason)
