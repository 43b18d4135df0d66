"""Blocks out of segments into the caller's memory, each verified there.

Invariant: an outcome is DONE only if the bytes in the caller's buffer have the checksum that the
segment's verified header gives for this key.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from kvtier.errors import Corrupt
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.tiers.faults import FaultLog
from kvtier.tiers.shared.format import Segment
from kvtier.tiers.shared.headers import Headers
from kvtier.tiers.shared.known import Known, Place
from kvtier.tiers.shared.store import Store

_RUN_BYTES: Final = 1 << 20
"""One read moves at most about this much: it is verified while it lies in the processor's cache,
and while the reads of other threads keep the storage busy."""

Wanted = tuple[Place, int]
"""Where a block lies, and its position in the batch."""


class Reader:
    """Reads whole batches. Safe from any thread; raises nothing for a fault."""

    def __init__(self, store: Store, headers: Headers, known: Known, faults: FaultLog) -> None:
        self._store = store
        self._headers = headers
        self._known = known
        self._faults = faults

    def read(
        self, wanted: Sequence[Wanted], moves: Sequence[BlockMove], outcomes: list[Outcome]
    ) -> None:
        """Fill the buffers of `wanted` and say what became of each block."""
        for run in _runs(wanted):
            try:
                self._read_run(run, moves, outcomes)
                self._faults.works("read")
            except OSError as error:
                self._faults.report("read", error)
                for _, i in run:
                    outcomes[i] = Outcome.FAILED

    def _read_run(
        self, run: list[Wanted], moves: Sequence[BlockMove], outcomes: list[Outcome]
    ) -> None:
        (segment, number), _ = run[0]
        first, block_bytes = segment.keys[0], segment.block_bytes
        buffers = [moves[i].buffer for _, i in run]
        read = self._store.read(self._headers.name(first), segment.offset(number), buffers)
        if read is None:
            self._known.forget(first)
            return  # MISSING: it was cleaned away
        is_whole = read.stat.size == segment.total_bytes
        block = self._headers.checksum.block
        wrong: list[int] = []
        for (_, number), i in run:
            key, buffer = moves[i]
            if is_whole and block(key, buffer[:block_bytes]) == segment.checksums[number]:
                outcomes[i] = Outcome.DONE
            else:
                wrong.append(i)
        if wrong:
            self._judge(segment, wrong, outcomes)

    def _judge(self, segment: Segment, wrong: list[int], outcomes: list[Outcome]) -> None:
        """Damaged, or replaced by another segment of the same name meanwhile?"""
        first = segment.keys[0]
        self._known.forget(first)
        try:
            if not self._headers.is_still(segment):
                return
            self._headers.quarantine(first, f"{len(wrong)} blocks do not match their checksums")
        except Corrupt:
            pass  # its header does not hold either, and it is out of the way
        for i in wrong:
            outcomes[i] = Outcome.CORRUPT


def _runs(wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """Cut into neighbours within a segment, in order, that one call may read."""
    run: list[Wanted] = []
    for each in sorted(wanted, key=lambda found: (found[0].segment.keys[0], found[0].number)):
        place = each[0]
        if run:
            last = run[-1][0]
            full = (len(run) + 1) * place.segment.slot_bytes > _RUN_BYTES
            if full or place.segment is not last.segment or place.number != last.number + 1:
                yield run
                run = []
        run.append(each)
    if run:
        yield run
