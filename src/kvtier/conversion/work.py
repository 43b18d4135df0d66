"""The work of a conversion: its report, the job of one block, and running many jobs.

`kvtier convert --json` prints the report. Invariants: each file is in exactly one count, and the
first REFUSALS_KEPT refused files are named. A job that has started is waited for, unless storage
hangs, so every result is counted; a stop or a limit never leaves a block half-written. Fields of
format 1 are only ever added.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from kvtier.inspection.view import printable
from kvtier.inspection.workers import Stopped, Throttle, Workers

FORMAT: Final = 1
REFUSALS_KEPT: Final = 1_000
REFUSALS: Final = {
    "short": "shorter than its block",
    "long": "longer than its block",
    "missing": "the file of another rank is missing, or was removed while it was read",
    "irregular": "a link, pipe, socket, device or folder",
    "unreadable": "cannot be read",
    "unknown": "not named as a block, or of another group",
    "damaged": "a segment whose header or checksums are wrong",
    "occupied": "the destination has something else under the block's name",
}
"""Reasons why a file was not converted."""
THREADS: Final = 4
_BATCH: Final = 64


class RefusedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file that was not converted."""

    file: str
    kind: str
    """A key of REFUSALS."""
    reason: str


class Conversion(msgspec.Struct, kw_only=True):
    """The report of one run of a conversion."""

    format: int = FORMAT
    source: str
    destination: str
    to: str
    """`kvtier` or `vllm-fs`."""
    tree: str
    system: str
    space: str
    """Name of the key space."""
    unproven: list[str]
    """Fields of the key space that the tree does not record, and that cannot be checked."""
    dry_run: bool = False
    complete: bool = False
    """Whether the whole source was processed; False if the run was stopped or limited."""
    limited: bool = False
    """Whether the run ended at the limit."""
    converted: int = 0
    """Blocks converted; in a dry run, those that would be."""
    bytes: int = 0
    """Bytes of these blocks without padding."""
    existed: int = 0
    """Blocks that existed already."""
    refused: dict[str, int] = {}
    """Number of refused files by kind."""
    refusals: list[RefusedFile] = []

    @property
    def refused_files(self) -> int:
        """Number of refused files of all kinds."""
        return sum(self.refused.values())

    def refuse(self, file: str, kind: str, reason: str = "") -> None:
        """Count a refused file, and name it unless REFUSALS_KEPT are named already."""
        self.refused[kind] = self.refused.get(kind, 0) + 1
        if len(self.refusals) < REFUSALS_KEPT:
            why = reason or REFUSALS[kind]
            self.refusals.append(RefusedFile(file=file, kind=kind, reason=why))


class BlockResult(NamedTuple):
    """The result of one block's conversion."""

    file: str
    kind: str
    """`converted`, `existed` or a key of REFUSALS."""
    block_bytes: int = 0
    """Size of the block, if it was converted."""
    reason: str = ""


ConversionJob = Callable[[], BlockResult]
"""Converts one block; blocks. Raises OSError if the destination fails or storage is silent."""


def settled(result: BlockResult) -> ConversionJob:
    """Return a job for a block whose result is known already."""
    return lambda: result


def run_jobs(
    jobs: Iterator[tuple[float, ConversionJob]],
    report: Conversion,
    throttle: Throttle,
    on_progress: Callable[[Conversion, float], None],
    limit: int | None = None,
) -> None:
    """Run jobs, count their results in `report`, and report progress after each batch.

    Converts at most `limit` blocks. Returns early, with `report.complete` False, after
    `throttle.stop()`. Raises what a job raises.
    """
    with Workers(THREADS, "kvtier-convert", throttle) as workers:
        while not throttle.stopped:
            room = _BATCH if limit is None else min(_BATCH, limit - report.converted)
            batch = list(islice(jobs, room)) if room > 0 else []
            if not batch:
                report.limited = room <= 0 and next(jobs, None) is not None
                report.complete = not report.limited
                return
            asked = [workers.submit(job) for _, job in batch]
            try:
                for number, future in enumerate(asked):
                    if throttle.stopped:
                        for later in asked[number:]:
                            later.cancel()
                    if not future.cancelled():
                        _count(report, workers.result(future))
            except Stopped:
                return
            on_progress(report, batch[-1][0])


def _count(report: Conversion, result: BlockResult) -> None:
    if result.kind == "converted":
        report.converted += 1
        report.bytes += result.block_bytes
    elif result.kind == "existed":
        report.existed += 1
    else:
        report.refuse(printable(result.file), result.kind, result.reason)
