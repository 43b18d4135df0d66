"""Which block is in which slot, and which slots are free.

Flat arrays by slot and one dictionary: about 250 bytes a block held, keys included.
Not thread-safe: DiskTier guards it.

Invariants: a slot is exactly one of free, being written, held, or retired (deleted, with a read
still in flight); a retired slot becomes free when its last read ends and not before.
"""

import array
from collections.abc import Iterator, Sequence

import numpy as np

from kvtier.blocks.key import BlockKey
from kvtier.tiers.base import ScanPage, StoredBlock
from kvtier.tiers.disk.log import Put

CHECKSUM_BYTES = 16
SCAN_BLOCKS = 16384


class SlotMap:
    """Index of a slab of `count` slots."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.slot_of: dict[BlockKey, int] = {}
        self._keys: list[BlockKey | None] = [None] * count
        self._parents: list[BlockKey | None] = [None] * count
        self._sums = bytearray(CHECKSUM_BYTES * count)
        # Number of the write that filled the slot, 0 where it is empty: the order of a scan.
        self._order = array.array("q", bytes(8 * count))
        self._reads = array.array("I", bytes(4 * count))
        self._writes = 0
        self._free: list[int] = []
        self._fresh = 0
        self._retired: set[int] = set()

    def __len__(self) -> int:
        """Blocks held."""
        return len(self.slot_of)

    @property
    def free_count(self) -> int:
        """Slots that `take` could give."""
        return len(self._free) + self.count - self._fresh

    def take(self, count: int) -> list[int]:
        """Up to `count` free slots, ascending: freed ones first, then never used ones."""
        reused = min(count, len(self._free))
        taken = self._free[len(self._free) - reused :]
        del self._free[len(self._free) - reused :]
        taken.sort()
        fresh = min(count - reused, self.count - self._fresh)
        taken.extend(range(self._fresh, self._fresh + fresh))
        self._fresh += fresh
        return taken

    def give_back(self, slots: Sequence[int]) -> None:
        """Return slots that were taken and hold nothing."""
        # Descending, because `take` takes from the end and wants neighbours.
        self._free.extend(sorted(slots, reverse=True))

    def publish(self, put: Put) -> None:
        """The slot now holds the block; it must be taken, and the key not held."""
        slot, key, parent, checksum = put
        self._writes += 1
        self._order[slot] = self._writes
        self._sums[slot * CHECKSUM_BYTES : (slot + 1) * CHECKSUM_BYTES] = checksum
        self._keys[slot] = key
        if parent is not None:
            # One object for a key and for the parent field of its children.
            held = self.slot_of.get(parent)
            self._parents[slot] = parent if held is None else self._keys[held]
        self.slot_of[key] = slot

    def forget(self, key: BlockKey) -> int | None:
        """The block is no longer held; returns its slot, which is not free yet."""
        slot = self.slot_of.pop(key, None)
        if slot is not None:
            self._order[slot] = 0
            self._keys[slot] = self._parents[slot] = None
        return slot

    def retire(self, slots: Sequence[int]) -> None:
        """Free forgotten slots, each as soon as no read is in flight."""
        idle = [slot for slot in slots if not self._reads[slot]]
        self._retired.update(slot for slot in slots if self._reads[slot])
        self.give_back(idle)

    def begin_read(self, slot: int) -> None:
        """A read of the slot is in flight."""
        self._reads[slot] += 1

    def end_reads(self, slots: Sequence[int]) -> None:
        """Reads begun with `begin_read` have ended."""
        reads = self._reads
        for slot in slots:
            reads[slot] -= 1
            if self._retired and not reads[slot] and slot in self._retired:
                self._retired.remove(slot)
                self._free.append(slot)

    def checksum(self, slot: int) -> bytearray:
        """The 16 bytes recorded for the block in the slot."""
        return self._sums[slot * CHECKSUM_BYTES : (slot + 1) * CHECKSUM_BYTES]

    def replay(self, put: Put) -> None:
        """Recovery: the newer record wins over whatever had the slot or the key."""
        if self._keys[put.slot] is not None:
            self.empty(put.slot)
        if put.key in self.slot_of:
            self.forget(put.key)
        self.publish(put)

    def empty(self, slot: int) -> None:
        """Recovery: the slot holds nothing."""
        key = self._keys[slot]
        if key is not None:
            self.forget(key)

    def rebuild_free(self) -> None:
        """Recovery is over: every slot that holds nothing is free."""
        held = np.frombuffer(self._order, dtype=np.int64) > 0
        used = np.flatnonzero(held)
        self._fresh = int(used[-1]) + 1 if len(used) else 0
        self._free = np.flatnonzero(~held[: self._fresh])[::-1].tolist()

    def puts(self) -> Iterator[Put]:
        """Every block held, oldest first."""
        for key, slot in self.slot_of.items():
            yield Put(slot, key, self._parents[slot], bytes(self.checksum(slot)))

    def parents(self, slots: Sequence[int]) -> list[BlockKey | None]:
        """Parent of the block in each slot."""
        return [self._parents[slot] for slot in slots]

    def checksums(self, slots: Sequence[int]) -> bytes:
        """Checksums of the blocks in the slots, one after the other."""
        rows = np.frombuffer(self._sums, dtype=f"V{CHECKSUM_BYTES}")
        return bytes(rows[list(slots)].data)

    def page(self, cursor: int) -> ScanPage:
        """Blocks written after write number `cursor`, oldest first. Costs O(slots)."""
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
