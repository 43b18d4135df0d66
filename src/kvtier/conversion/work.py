"""The work of a conversion, block by block: what a job is, and running many of them.

Invariants: a job that began is waited for, unless storage hangs, so that every result is counted;
who stops a run, or limits it, gets whole blocks and nothing half-done.
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
    "missing": "the file of another rank is missing, or went while it was read",
    "irregular": "a link, pipe, socket, device or folder",
    "unreadable": "the file system refuses it",
    "unknown": "named as no block is, or of another group",
    "damaged": "a segment whose header or checksums are wrong",
    "occupied": "something else has the name where the block should go",
}
"""Why a file was not converted."""


class RefusedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file that was not converted."""

    file: str
    kind: str
    """Of REFUSALS."""
    reason: str


class Conversion(msgspec.Struct, kw_only=True):
    """Of one run."""

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
    """Fields of the key space that the tree does not tell, so that nobody can check them."""
    dry_run: bool = False
    complete: bool = False
    """Whether all of the source was looked at; False where it was interrupted or limited."""
    limited: bool = False
    converted: int = 0
    """Blocks; in a dry run, those that would be."""
    bytes: int = 0
    """Of them, without padding."""
    existed: int = 0
    """Blocks that were there already."""
    refused: dict[str, int] = {}
    """Files, by kind."""
    refusals: list[RefusedFile] = []

    @property
    def refused_files(self) -> int:
        """Of all kinds."""
        return sum(self.refused.values())

    def refuse(self, file: str, kind: str, reason: str = "") -> None:
        """Count it, and name it while there is room."""
        self.refused[kind] = self.refused.get(kind, 0) + 1
        if len(self.refusals) < REFUSALS_KEPT:
            why = reason or REFUSALS[kind]
            self.refusals.append(RefusedFile(file=file, kind=kind, reason=why))


THREADS: Final = 4


_BATCH: Final = 64


class BlockResult(NamedTuple):
    """What became of one block. `kind`: converted, existed, or one of REFUSALS."""

    file: str
    kind: str
    block_bytes: int = 0
    """Where it was converted."""
    reason: str = ""


ConversionJob = Callable[[], BlockResult]
"""Converts one block. Blocks; raises OSError where the destination refuses, or nobody answers."""


def run_jobs(
    jobs: Iterator[tuple[float, ConversionJob]],
    report: Conversion,
    pace: Throttle,
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


def _count(report: Conversion, result: BlockResult) -> None:
    if result.kind == "converted":
        report.converted += 1
        report.bytes += result.block_bytes
    elif result.kind == "existed":
        report.existed += 1
    else:
        report.refuse(printable(result.file), result.kind, result.reason)
