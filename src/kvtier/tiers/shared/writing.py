"""Writing segments: a batch is cut into runs of one chain, and each run is published as files.

Two writers may cut one chain differently. The first one to publish a name wins; the other reads the
winner's header and continues after the blocks that the winner wrote.

Invariant: a block is DONE only if it lies in a segment that was published as a whole.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from kvtier.blocks.key import BlockKey
from kvtier.errors import Corrupt
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.tiers.faults import FaultLog
from kvtier.tiers.shared.format import encode_header
from kvtier.tiers.shared.reading import KnownSegments, SegmentHeaders, aligned_buffer
from kvtier.tiers.shared.store import Store

_GROUP_BYTES = 4
"""The length of the group index at the end of a key; all blocks of a chain are of one group."""
_LOSSES_MAX = 6
"""How often a name is tried that is taken but shows no file.

A mount may cache for a minute that a name is free, and every try writes the whole segment. Where
winners really come and go (four threads that write and delete the same few blocks), one loss in
thirty is followed by another.
"""


class SegmentWriter:
    """A writer of whole batches. Safe from any thread; raises nothing for a fault."""

    def __init__(
        self,
        store: Store,
        headers: SegmentHeaders,
        known: KnownSegments,
        faults: FaultLog,
        segment_blocks: int,
    ) -> None:
        self._store = store
        self._headers = headers
        self._known = known
        self._faults = faults
        self._segment_blocks = segment_blocks

    def write(
        self,
        moves: Sequence[BlockMove],
        parents: Sequence[BlockKey | None],
        outcomes: list[Outcome],
    ) -> None:
        """Publish the blocks that the store lacks, and set the outcome of each block."""
        for run in _runs(moves, parents):
            try:
                self._write_run(run, moves, parents, outcomes)
                self._faults.succeeded("write")
            except OSError as error:
                self._faults.report("write", error)

    def _write_run(
        self,
        run: Sequence[int],
        moves: Sequence[BlockMove],
        parents: Sequence[BlockKey | None],
        outcomes: list[Outcome],
    ) -> None:
        left = list(run)
        losses = 0
        while left:
            if moves[left[0]].key in self._known:
                outcomes[left.pop(0)] = Outcome.DONE
                losses = 0
                continue
            if self._publish(left, moves, parents):
                continue
            losses += 1
            if losses == _LOSSES_MAX or not self._learn_winner(left, moves):
                return  # FAILED: the file of that name is broken and stays, or cannot be seen

    def _publish(
        self, run: Sequence[int], moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]
    ) -> bool:
        headers = self._headers
        run = run[: self._segment_blocks]
        keys = [moves[i].key for i in run]
        buffers = [moves[i].buffer for i in run]
        block_bytes = headers.block_bytes
        checksums = [
            headers.checksum.block(key, buffer[:block_bytes])
            for key, buffer in zip(keys, buffers, strict=True)
        ]
        segment = headers.segment(keys, checksums, parents[run[0]])
        header = aligned_buffer(segment.header_bytes)
        header[:] = np.frombuffer(encode_header(segment, headers.checksum), np.uint8)
        if self._store.publish(headers.name(keys[0]), [header, *buffers]):
            self._known.add(segment)
            return True
        return False

    def _learn_winner(self, run: Sequence[int], moves: Sequence[BlockMove]) -> bool:
        """Learn which segment has the name we wanted. False if it is broken and cannot be moved."""
        first = moves[run[0]].key
        try:
            winner = self._headers.load(first)
        except Corrupt:
            # The broken file should be out of the way by now, and the name free again.
            return self._store.stat(self._headers.name(first)) is None
        # None: the winner is gone again. The next try publishes, or meets the next winner.
        if winner is not None:
            self._known.add(winner)
        return True


def _runs(moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]) -> Iterator[list[int]]:
    """Yield the positions of consecutive blocks of one chain."""
    run: list[int] = []
    seen: set[BlockKey] = set()
    for i, (move, parent) in enumerate(zip(moves, parents, strict=True)):
        if run:
            last = moves[run[-1]].key
            follows = parent == last and move.key[-_GROUP_BYTES:] == last[-_GROUP_BYTES:]
            if not follows or move.key in seen:
                yield run
                run, seen = [], set()
        run.append(i)
        seen.add(move.key)
    if run:
        yield run
