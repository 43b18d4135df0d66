"""The estimated index: an LRU for each replica and tier over the prompts routed there.

It serves replicas that announce nothing. Tiers below the device are written through, so each tier
is an LRU of its own over the same requests, and what the device's LRU has evicted is still in the
larger LRU of RAM. Capacities are kept in tokens and converted into blocks of the replica's own
block size in one place, here.

Every routed request touches its whole prefix, the deepest block first. So an LRU always evicts
leaves, and the order of recency is a list of *segments*: the blocks of each request that no later
request has touched, which are the end of its chain. A tier holds everything younger than its
*edge*, a position in that list. So any number of tiers share one list, and eviction moves an edge.

Invariants: a block belongs to the segment of the last request that touched it; along a chain,
segments get older; a tier never holds more than its capacity, and never a block without those
before it.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from kvtier.index.fleet.base import DEVICE, IndexSource, Match
from kvtier.index.fleet.prompt import Prompt
from kvtier.index.fleet.table import CUMULATIVE, BlockTable, Levels, merged

DEVICE_TOKENS: Final = 500_000
"""The capacity of a device that is not known."""
BLOCK_TOKENS: Final = 16
"""The block size of a replica if it is not known."""
COMPARED_TOKENS: Final = 64
"""The smallest block of an estimate. What is lost at the end of a prefix is computed in
milliseconds, while blocks of 16 tokens would take four times the memory."""
BLOCKS_MAX: Final = 1 << 20
"""The largest capacity of a replica's tier: 160 MiB, whatever the replica reports."""


class _Segment:
    """Blocks from `start` on of a request's chain, and the neighboring segments in time."""

    __slots__ = ("blocks", "newer", "number", "older", "start")

    def __init__(self, number: int, chain: Sequence[int]) -> None:
        self.number = number
        self.blocks = chain
        """Replaced but never changed in place: at first it is the prompt's own list."""
        self.start = 0
        self.older: _Segment | None = None
        self.newer: _Segment | None = None

    @property
    def end(self) -> int:
        """The end of its blocks, as a position in the chain."""
        return self.start + len(self.blocks)


class _TierLRU:
    """The LRU of one tier. It holds the segments after `edge`, and of `edge` all before `cut`."""

    __slots__ = ("blocks", "capacity", "cut", "edge", "level")

    def __init__(self, level: int, capacity: int) -> None:
        self.level = level
        self.capacity = capacity
        self.blocks = 0
        self.edge: _Segment | None = None
        """None while nothing is held: then every new segment is younger."""
        self.cut = 0


class ReplicaLRU:
    """The estimated contents of one replica. Takes 80 bytes per block beside the table's."""

    def __init__(self, table: BlockTable) -> None:
        self.table = table
        self.slot = table.take_slot()
        self._segments: dict[int, _Segment] = {}
        """By block: the segment it belongs to."""
        self._oldest: _Segment | None = None
        self._newest: _Segment | None = None
        self._routed = 0
        self._tiers: dict[int, _TierLRU] = {}

    def __len__(self) -> int:
        """The number of blocks held in any tier."""
        return len(self._segments)

    def release(self) -> None:
        """Release the replica's slot. The object must not be used afterwards."""
        self.table.release_slot(self.slot, self._segments)

    def capacity(self, level: int) -> int:
        """Return the capacity of a tier in blocks; 0 if it was never set."""
        tier = self._tiers.get(level)
        return 0 if tier is None else tier.capacity

    def resize(self, level: int, capacity: int) -> None:
        """Set the capacity of a tier in blocks, and evict the oldest blocks beyond it."""
        tier = self._tiers.get(level)
        if tier is None:
            # A tier that has just become known holds nothing of what was routed before.
            tier = self._tiers[level] = _TierLRU(level, capacity)
            tier.edge, tier.cut = self._newest, 0
            if self._newest is not None:
                tier.cut = self._newest.start
        tier.capacity = capacity
        self._evict()

    def touch(self, chain: Sequence[int]) -> None:
        """Note that a request with this chain was routed here. Takes 0.2 us per block."""
        if not chain or not self._tiers:
            return
        gained = self._cut_out(chain)
        segment = _Segment(self._routed, chain)
        self._routed += 1
        self._append(segment)
        self._segments.update(dict.fromkeys(chain, segment))
        for tier in self._tiers.values():
            tier.blocks += len(chain) - gained[tier.level]
        self._write(segment, min(gained.values()), len(chain))
        self._evict()

    # -- the list --------------------------------------------------------------------------

    def _cut_out(self, chain: Sequence[int]) -> dict[int, int]:
        """Cut the chain's blocks out of their segments; return, by level, how many were held."""
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
                # Everything younger is held whole, and so is the next segment.
                tier.edge = newer
                tier.cut = 0 if newer is None else newer.end

    # -- tiers -----------------------------------------------------------------------------

    def _extent(self, tier: _TierLRU, segment: _Segment) -> int:
        """Return where the part of a segment that the tier holds ends; its start if it is empty."""
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
                self._write(segment, tier.cut, end)
                if tier.cut == segment.start and tier.edge is segment:
                    tier.edge = segment.newer
                    tier.cut = 0 if tier.edge is None else tier.edge.end
        self._remove_unheld()

    def _remove_unheld(self) -> None:
        """Remove the ends of segments that no tier holds, from the oldest segment on."""
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

    def _write(self, segment: _Segment, start: int, end: int) -> None:
        """Write into the table which tiers hold the blocks `start` to `end`."""
        extents = [(self._extent(tier, segment), tier.level) for tier in self._tiers.values()]
        cuts = sorted({start, end, *(extent for extent, _ in extents if start < extent < end)})
        for low, high in pairwise(cuts):
            raw = sum(1 << level for extent, level in extents if extent > low)
            piece = segment.blocks[low - segment.start : high - segment.start]
            self.table.set_bits(piece, self.slot, CUMULATIVE[raw])


def _common(chain: Sequence[int], at: int, blocks: Sequence[int]) -> int:
    """Return how many of `blocks` the chain has from `at` on, by bisection; the first is equal."""
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


class _SizeGroup(NamedTuple):
    """The replicas whose blocks have one size."""

    table: BlockTable
    slots: dict[str, int]
    """By replica."""


class EstimatedIndex:
    """A FleetIndex that estimates what replicas hold.

    `capacities`, in tokens, apply to every replica until `resize` is called for it.
    """

    source: Final = IndexSource.ESTIMATED

    def __init__(
        self,
        capacities: Mapping[str, int] | None = None,
        *,
        block_tokens: int = BLOCK_TOKENS,
        follows: Collection[str] | None = None,
    ) -> None:
        """Create an index. `follows` are the tiers that `resize` may size or add; None for all."""
        self._capacities = {DEVICE: DEVICE_TOKENS} if capacities is None else dict(capacities)
        self._block_tokens = block_tokens
        self._follows = None if follows is None else frozenset(follows)
        self._levels = Levels()
        self._sizes: dict[int, _SizeGroup] = {}
        """By the tokens of a block."""
        self._replicas: dict[str, ReplicaLRU] = {}
        self._reported: dict[str, dict[str, int]] = {}
        for tier in self._capacities:
            self._levels.use(tier)

    def match(self, prompt: Prompt, replicas: Sequence[str]) -> list[Match]:
        """Return one Match per replica, in the same order."""
        placed = [(size, list(map(size.slots.get, replicas))) for size in self._sizes.values()]
        parts = [
            self._match(size.table, prompt, slots)
            for size, slots in placed
            if any(slot is not None for slot in slots)
        ]
        if not parts:
            return [Match({}, prompt.tokens)] * len(replicas)
        return parts[0] if len(parts) == 1 else merged(parts)

    def _match(self, table: BlockTable, prompt: Prompt, slots: Sequence[int | None]) -> list[Match]:
        """Return one Match per slot; None, for replicas of another block size, holds nothing."""
        ends = table.ends(prompt.chain(table.block_tokens))
        return ends.matches(slots, self._levels, table.block_tokens, prompt.tokens)

    def routed(self, prompt: Prompt, replica: str) -> None:
        """Note that the prompt goes to this replica.

        Takes about 1 us per block that is new, half of it otherwise.
        """
        lru = self._replicas.get(replica)
        if lru is None:
            lru = self._add(replica, self._block_tokens)
        for size in self._sizes.values():
            size.table.sweep()
        lru.touch(prompt.chain(lru.table.block_tokens))

    def resize(self, replica: str, tier: str, capacity_tokens: int) -> None:
        """Set the capacity of a replica's tier. One that is not positive is ignored."""
        if capacity_tokens <= 0 or (self._follows is not None and tier not in self._follows):
            return
        level = self._levels.use(tier)
        if level is None:
            return
        reported = self._reported.setdefault(replica, {})
        if reported.get(tier) == capacity_tokens:
            return
        reported[tier] = capacity_tokens
        lru = self._replicas.get(replica)
        if lru is not None:
            lru.resize(level, _blocks(capacity_tokens, lru.table.block_tokens))

    def set_block_tokens(self, replica: str, block_tokens: int) -> None:
        """Set the size of a replica's KV blocks. A new size removes its blocks."""
        if block_tokens <= 0:
            return
        known = self._replicas.get(replica)
        if known is not None and known.table.block_tokens == block_tokens:
            return
        self._release(replica)
        self._add(replica, block_tokens)

    def remove(self, replica: str) -> None:
        """Remove a replica and the capacities reported for it. Idempotent."""
        self._reported.pop(replica, None)
        self._release(replica)

    def held_blocks(self, replica: str) -> int:
        """Return the number of blocks that a replica is believed to hold in any tier."""
        lru = self._replicas.get(replica)
        return 0 if lru is None else len(lru)

    def _add(self, replica: str, block_tokens: int) -> ReplicaLRU:
        # Remove the tables of block sizes that no replica uses any more.
        self._sizes = {
            tokens: size
            for tokens, size in self._sizes.items()
            if size.slots or tokens == block_tokens
        }
        size = self._sizes.get(block_tokens)
        if size is None:
            size = self._sizes[block_tokens] = _SizeGroup(BlockTable(block_tokens), {})
        lru = self._replicas[replica] = ReplicaLRU(size.table)
        size.slots[replica] = lru.slot
        for tier, tokens in {**self._capacities, **self._reported.get(replica, {})}.items():
            level = self._levels.use(tier)
            if level is not None:
                lru.resize(level, _blocks(tokens, block_tokens))
        return lru

    def _release(self, replica: str) -> None:
        lru = self._replicas.pop(replica, None)
        if lru is None:
            return
        del self._sizes[lru.table.block_tokens].slots[replica]
        lru.release()


def compared(block_tokens: int) -> int:
    """Return the size of an estimate's blocks: a multiple of the engine's, 64 tokens or more."""
    return block_tokens * -(-COMPARED_TOKENS // block_tokens) if block_tokens > 0 else 0


def _blocks(capacity_tokens: int, block_tokens: int) -> int:
    """Return the whole blocks of a capacity, at least 1, because the tier exists."""
    return min(BLOCKS_MAX, max(1, capacity_tokens // block_tokens))
