"""The LRUs of one replica, a tier each, over what was routed there, block by block.

Every request that is routed touches its whole prefix, the deepest block first. So what an LRU
evicts is always a leaf, and the order of recency is a list of *segments*: each request's blocks
that no later one has touched, which are the end of its chain. A tier holds what is younger than
its *edge*, a place in that list, so that any number of tiers share one list and eviction moves
an edge.

Invariants: a block belongs to the segment of the last request that touched it; along a chain,
segments get older; a tier never holds more than its capacity, and never a block without those
before it.
"""

from collections.abc import Sequence
from itertools import pairwise

from kvtier.index.fleet.levels import CUMULATIVE
from kvtier.index.fleet.table import BlockTable


class _Segment:
    """Blocks from `start` on of a request's chain, and its neighbours in time."""

    __slots__ = ("blocks", "newer", "number", "older", "start")

    def __init__(self, number: int, chain: Sequence[int]) -> None:
        self.number = number
        self.blocks = chain
        """Replaced and never changed: at first it is the prompt's own."""
        self.start = 0
        self.older: _Segment | None = None
        self.newer: _Segment | None = None

    @property
    def end(self) -> int:
        """Of its blocks, as a position in the chain."""
        return self.start + len(self.blocks)


class _Tier:
    """One LRU: it holds the segments younger than `edge`, and of that one all before `cut`."""

    __slots__ = ("blocks", "capacity", "cut", "edge", "level")

    def __init__(self, level: int, capacity: int) -> None:
        self.level = level
        self.capacity = capacity
        self.blocks = 0
        self.edge: _Segment | None = None
        """None: nothing is held yet, and everything that comes is younger."""
        self.cut = 0


class Recency:
    """What one replica holds, by estimate. 80 bytes a block beside the table's. One thread."""

    def __init__(self, table: BlockTable) -> None:
        self.table = table
        self.slot = table.take_slot()
        self._segments: dict[int, _Segment] = {}
        """By block: the one it belongs to."""
        self._oldest: _Segment | None = None
        self._newest: _Segment | None = None
        self._routed = 0
        self._tiers: dict[int, _Tier] = {}

    def __len__(self) -> int:
        """Blocks held in any tier."""
        return len(self._segments)

    def release(self) -> None:
        """Forget everything; the object is not used again."""
        self.table.release_slot(self.slot, self._segments)

    def capacity(self, level: int) -> int:
        """Blocks that a tier holds at most; 0 for one that was never sized."""
        tier = self._tiers.get(level)
        return 0 if tier is None else tier.capacity

    def resize(self, level: int, capacity: int) -> None:
        """From now on the tier holds at most so many blocks; the oldest beyond leave."""
        tier = self._tiers.get(level)
        if tier is None:
            # A tier that has just become known holds nothing of what was routed before.
            tier = self._tiers[level] = _Tier(level, capacity)
            tier.edge, tier.cut = self._newest, 0
            if self._newest is not None:
                tier.cut = self._newest.start
        tier.capacity = capacity
        self._evict()

    def touch(self, chain: Sequence[int]) -> None:
        """A request with this chain was routed here. A fifth of a microsecond a block."""
        if not chain or not self._tiers:
            return
        gained = self._take_over(chain)
        segment = _Segment(self._routed, chain)
        self._routed += 1
        self._append(segment)
        self._segments.update(dict.fromkeys(chain, segment))
        for tier in self._tiers.values():
            tier.blocks += len(chain) - gained[tier.level]
        self._paint(segment, min(gained.values()), len(chain))
        self._evict()

    # -- the list --------------------------------------------------------------------------

    def _take_over(self, chain: Sequence[int]) -> dict[int, int]:
        """Cut what is touched again out of its segments; by level, where the held part ends."""
        held = dict.fromkeys(self._tiers, 0)
        at = 0
        while at < len(chain):
            segment = self._segments.get(chain[at])
            if segment is None:
                break
            count = _common(chain, at, segment.blocks)
            for tier in self._tiers.values():
                reach = min(self._extent(tier, segment), at + count)
                if reach > at:
                    held[tier.level] = reach
            segment.blocks = segment.blocks[count:]
            segment.start = at = at + count
            if not segment.blocks:
                self._unlink(segment)
        return held

    def _append(self, segment: _Segment) -> None:
        segment.older = self._newest
        if self._newest is None:
            self._oldest = segment
        else:
            self._newest.newer = segment
        self._newest = segment
        for tier in self._tiers.values():
            if tier.edge is None:
                tier.edge, tier.cut = segment, segment.end

    def _unlink(self, segment: _Segment) -> None:
        older, newer = segment.older, segment.newer
        if older is None:
            self._oldest = newer
        else:
            older.newer = newer
        if newer is None:
            self._newest = older
        else:
            newer.older = older
        for tier in self._tiers.values():
            if tier.edge is segment:
                # Everything younger is held whole, so the next one is as well.
                tier.edge = newer
                tier.cut = 0 if newer is None else newer.end

    # -- tiers -----------------------------------------------------------------------------

    def _extent(self, tier: _Tier, segment: _Segment) -> int:
        """Where what the tier holds of a segment ends; its start where it holds nothing."""
        edge = tier.edge
        if edge is None or segment.number < edge.number:
            return segment.start
        if segment is edge:
            return max(segment.start, min(tier.cut, segment.end))
        return segment.end

    def _evict(self) -> None:
        for tier in self._tiers.values():
            while tier.blocks > tier.capacity and tier.edge is not None:
                segment = tier.edge
                end = self._extent(tier, segment)
                tier.cut = max(segment.start, end - (tier.blocks - tier.capacity))
                tier.blocks -= end - tier.cut
                self._paint(segment, tier.cut, end)
                if tier.cut == segment.start and tier.edge is segment:
                    tier.edge = segment.newer
                    tier.cut = 0 if tier.edge is None else tier.edge.end
        self._forget()

    def _forget(self) -> None:
        """Drop the ends of segments that no tier holds, from the oldest on."""
        while self._oldest is not None:
            segment = self._oldest
            end = max((self._extent(tier, segment) for tier in self._tiers.values()), default=0)
            kept = max(end - segment.start, 0)
            for hashed in segment.blocks[kept:]:
                del self._segments[hashed]
            segment.blocks = segment.blocks[:kept]
            if kept:
                return
            self._unlink(segment)

    def _paint(self, segment: _Segment, start: int, end: int) -> None:
        """Write into the table what the tiers hold of blocks `start` to `end`."""
        extents = [(self._extent(tier, segment), tier.level) for tier in self._tiers.values()]
        cuts = sorted({start, end, *(extent for extent, _ in extents if start < extent < end)})
        for low, high in pairwise(cuts):
            raw = sum(1 << level for extent, level in extents if extent > low)
            piece = segment.blocks[low - segment.start : high - segment.start]
            self.table.paint(piece, self.slot, CUMULATIVE[raw])


def _common(chain: Sequence[int], at: int, blocks: Sequence[int]) -> int:
    """How many of `blocks` the chain has from `at` on, where the first is equal; by bisection."""
    low, high = 0, min(len(chain) - at, len(blocks))
    if chain[at + high - 1] == blocks[high - 1]:
        return high
    while high - low > 1:
        middle = (low + high) >> 1
        if chain[at + middle] == blocks[middle]:
            low = middle
        else:
            high = middle
    return high
