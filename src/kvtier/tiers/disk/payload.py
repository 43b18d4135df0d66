"""Payloads between memory and slots, and the checksums taken and verified on the way.

Invariant: an outcome is DONE only if the bytes in the caller's buffer have the checksum that
was recorded for this key. Verification follows each system call in the same thread, while
other threads use the disk.
"""

from collections.abc import Sequence

from kvtier.blocks.checksum import Xxh3
from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import BlockLayout
from kvtier.tiers.base import BlockMove, Buffer, Outcome
from kvtier.tiers.disk.log import Put
from kvtier.tiers.disk.runs import Place, runs
from kvtier.tiers.disk.slab import Slab
from kvtier.tiers.disk.slots import SlotMap
from kvtier.tiers.faults import FaultLog

_RUN_BYTES = 2 << 20
"""One system call moves about this much: enough for the disk, and still in the processor's cache
when it is verified."""


class Payload:
    """Moves whole batches. Safe from any thread; raises nothing for a fault."""

    def __init__(self, slab: Slab, slots: SlotMap, layout: BlockLayout, faults: FaultLog) -> None:
        self._slab = slab
        self._slots = slots
        self._checksum = Xxh3()
        self._block_bytes = layout.block_bytes
        self._run_blocks = max(1, _RUN_BYTES // layout.slot_bytes)
        self._faults = faults

    def read(
        self, places: Sequence[Place], moves: Sequence[BlockMove], outcomes: list[Outcome]
    ) -> None:
        """Fill the buffers from the slots (ascending) and say what became of each block."""
        for run in runs(places, self._slab.segment_slots, self._run_blocks):
            self._read_run(run, moves, outcomes)

    def write(
        self,
        places: Sequence[Place],
        moves: Sequence[BlockMove],
        parents: Sequence[BlockKey | None],
    ) -> list[Put]:
        """Write the buffers to the slots (ascending); returns what may now be recorded."""
        puts: list[Put] = []
        for run in runs(places, self._slab.segment_slots, self._run_blocks):
            puts += self._write_run(run, moves, parents)
        return puts

    def _read_run(
        self, run: Sequence[Place], moves: Sequence[BlockMove], outcomes: list[Outcome]
    ) -> None:
        try:
            whole = self._slab.read(run[0][0], [moves[i].buffer for _, i in run])
        except OSError as error:
            if len(run) > 1:  # find out which block it is
                for place in run:
                    self._read_run([place], moves, outcomes)
                return
            self._faults.report("read", error)
            outcomes[run[0][1]] = Outcome.FAILED
            return
        self._faults.works("read")
        block_bytes = self._block_bytes
        for slot, i in run[:whole]:
            key, buffer = moves[i]
            good = self._slots.checksum(slot) == self._checksum.block(key, buffer[:block_bytes])
            outcomes[i] = Outcome.DONE if good else Outcome.CORRUPT
        # The file ends before the block: its bytes are lost.
        for _, i in run[whole:]:
            outcomes[i] = Outcome.CORRUPT

    def _write_run(
        self, run: Sequence[Place], moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]
    ) -> list[Put]:
        """The records of the blocks whose bytes are now in their slots."""
        block_bytes = self._block_bytes
        puts: list[Put] = []
        buffers: list[Buffer] = []
        for slot, i in run:
            key, buffer = moves[i]
            buffers.append(buffer)
            checksum = self._checksum.block(key, buffer[:block_bytes])
            puts.append(Put(slot, key, parents[i], checksum))
        try:
            whole = self._slab.write(run[0][0], buffers)
        except OSError as error:
            self._faults.report("write", error)
            return []
        if whole == len(run):
            self._faults.works("write")
        return puts[:whole]
