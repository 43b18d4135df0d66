"""The slot map: which slot holds which block, and which slots are free.

The columns are flat arrays by slot beside one dictionary: about 250 bytes per block held, keys
included. Not thread-safe: DiskTier serializes the calls.

Invariants: a slot is exactly one of free, being written, held, or retired (its block was removed
while a read is in flight); a retired slot becomes free when its last read ends, not before.
"""

import array
from collections.abc import Sequence

import numpy as np

from kvtier.blocks.key import BlockKey
from kvtier.memory.free_slots import FreeSlots
from kvtier.tiers.base import ScanPage, StoredBlock
from kvtier.tiers.disk.log import Put

CHECKSUM_BYTES = 16
SCAN_BLOCKS = 16384
"""Blocks in a page of a scan."""


class SlotMap:
    """The index of a slab of `count` slots."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.slot_of: dict[BlockKey, int] = {}
        self._keys: list[BlockKey | None] = [None] * count
        self._parents: list[BlockKey | None] = [None] * count
        self._sums = bytearray(CHECKSUM_BYTES * count)
        # The number of the write that filled the slot, 0 if it is empty: the order of a scan.
        self._order = array.array("q", bytes(8 * count))
        self._reads = array.array("I", bytes(4 * count))
        self._writes = 0
        self._free = FreeSlots(count)
        self._retired: set[int] = set()

    def __len__(self) -> int:
        """The number of blocks held."""
        return len(self.slot_of)

    @property
    def free_count(self) -> int:
        """The number of slots that `take` could return."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take up to `count` free slots, ascending: reused ones first, then never used ones."""
        return sorted(self._free.take(count))

    def release(self, slots: Sequence[int]) -> None:
        """Give back slots that were taken and hold nothing."""
        # Descending, because `take` takes from the end, and neighbors are read in one call.
        self._free.release(sorted(slots, reverse=True))

    def publish(self, put: Put) -> None:
        """Enter a block. The slot must have been taken, and the key must not be held."""
        slot, key, parent, checksum = put
        self._writes += 1
        self._order[slot] = self._writes
        self._sums[slot * CHECKSUM_BYTES : (slot + 1) * CHECKSUM_BYTES] = checksum
        self._keys[slot] = key
        if parent is not None:
            # A key and the parent field of its children share one object.
            held = self.slot_of.get(parent)
            self._parents[slot] = parent if held is None else self._keys[held]
        self.slot_of[key] = slot

    def remove(self, key: BlockKey) -> int | None:
        """Remove a block; return its slot, which is not free before `retire`, or None."""
        slot = self.slot_of.pop(key, None)
        if slot is not None:
            self._order[slot] = 0
            self._keys[slot] = self._parents[slot] = None
        return slot

    def retire(self, slots: Sequence[int]) -> None:
        """Free the slots of removed blocks, each as soon as no read of it is in flight."""
        idle = [slot for slot in slots if not self._reads[slot]]
        self._retired.update(slot for slot in slots if self._reads[slot])
        self.release(idle)

    def begin_read(self, slot: int) -> None:
        """Count a read of the slot as in flight."""
        self._reads[slot] += 1

    def end_reads(self, slots: Sequence[int]) -> None:
        """End reads that began with `begin_read`."""
        reads = self._reads
        for slot in slots:
            reads[slot] -= 1
            if self._retired and not reads[slot] and slot in self._retired:
                self._retired.remove(slot)
                self._free.release((slot,))

    def checksum(self, slot: int) -> bytearray:
        """Return the 16 bytes recorded for the block in the slot."""
        return self._sums[slot * CHECKSUM_BYTES : (slot + 1) * CHECKSUM_BYTES]

    def replay(self, put: Put) -> None:
        """Enter a block during recovery: it replaces older entries of the slot and of the key."""
        if self._keys[put.slot] is not None:
            self.empty(put.slot)
        if put.key in self.slot_of:
            self.remove(put.key)
        self.publish(put)

    def empty(self, slot: int) -> None:
        """Remove whatever block the slot holds, during recovery."""
        key = self._keys[slot]
        if key is not None:
            self.remove(key)

    def rebuild_free(self) -> None:
        """Free every slot that holds nothing, at the end of recovery."""
        held = np.frombuffer(self._order, dtype=np.int64) > 0
        used = np.flatnonzero(held)
        fresh = int(used[-1]) + 1 if len(used) else 0
        self._free.rebuild(fresh, np.flatnonzero(~held[:fresh])[::-1].tolist())

    def parents(self, slots: Sequence[int]) -> list[BlockKey | None]:
        """Return the parent of the block in each slot."""
        return [self._parents[slot] for slot in slots]

    def checksums(self, slots: Sequence[int]) -> bytes:
        """Return the checksums of the blocks in the slots, concatenated."""
        rows = np.frombuffer(self._sums, dtype=f"V{CHECKSUM_BYTES}")
        return bytes(rows[list(slots)].data)

    def page(self, cursor: int) -> ScanPage:
        """Return blocks written after write number `cursor`, oldest first. Costs O(slots)."""
        order = np.frombuffer(self._order, dtype=np.int64)
        later = np.flatnonzero(order > cursor)
        if len(later) > SCAN_BLOCKS:
            later = later[np.argpartition(order[later], SCAN_BLOCKS - 1)[:SCAN_BLOCKS]]
            more = True
        else:
            more = False
        later = later[np.argsort(order[later])]
        blocks = []
        for slot in later.tolist():
            key = self._keys[slot]
            if key is not None:
                blocks.append(StoredBlock(key, self._parents[slot]))
        return ScanPage(blocks, int(order[later[-1]]) if more else None)
