"""The work of a conversion, block by block: what a job is, and running many of them.

Invariants: a job that began is waited for, so that every result is counted; who stops a run, or
limits it, gets whole blocks and nothing half-done.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final, NamedTuple

from kvtier.conversion.report import Conversion
from kvtier.inspection.folder import printable
from kvtier.inspection.pace import Pace

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
"""Converts one block. Blocks; raises OSError where the destination refuses, and only then."""


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
    with ThreadPoolExecutor(THREADS, "convert") as threads:
        while not pace.stopped:
            room = _BATCH if limit is None else min(_BATCH, limit - report.converted)
            batch = list(islice(jobs, room)) if room > 0 else []
            if not batch:
                report.limited = room <= 0 and next(jobs, None) is not None
                report.complete = not report.limited
                return
            for result in threads.map(_call, [job for _, job in batch]):
                _count(report, result)
            told(report, batch[-1][0])


def _call(job: Job) -> Result:
    return job()


def _count(report: Conversion, result: Result) -> None:
    if result.kind == "converted":
        report.converted += 1
        report.bytes += result.block_bytes
    elif result.kind == "existed":
        report.existed += 1
    else:
        report.refuse(printable(result.file), result.kind, result.reason)
