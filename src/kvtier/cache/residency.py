"""Records which tier holds which block in which slot, and counts what happens to blocks.

`Residency` keeps the index, the eviction policies and the arena consistent with each other.

Invariants: `free + resident + moving == slots` (the conservation law, asserted by `check`); a
row is in the policy of tier t exactly while t holds it; a pinned row is never evicted; the slot
of a row is released when the row leaves RAM, and not before.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kvtier.blocks.events import BlockEvent, Change
from kvtier.blocks.key import BlockKey
from kvtier.eviction.base import EvictionPolicy
from kvtier.index.local import DISCARDED, HOLE, IDLE, NONE, PROMOTING, RAM, SAVING, LocalIndex
from kvtier.memory.arena import Arena, Slot


@dataclass(slots=True)
class TierCounters:
    """The counters of one tier.

    Reads and writes of RAM are the engine's; those of lower tiers are transfers.
    """

    hit_blocks: int = 0
    """Blocks that this tier supplied to the engine."""
    read_blocks: int = 0
    written_blocks: int = 0
    evicted_blocks: int = 0
    corrupt_blocks: int = 0
    """Blocks that failed verification: removed, and reported as misses."""
    missing_blocks: int = 0
    """Blocks that the index listed and the tier did not have."""
    fault_blocks: int = 0
    """Blocks whose read or write failed: reported as misses, or not stored."""
    rejected_blocks: int = 0
    """Blocks that the admission policy rejected."""
    dropped_blocks: int = 0
    """Blocks not stored because of back-pressure: a full queue, or no slot that could be freed."""


@dataclass(slots=True)
class CacheCounters:
    """The counters of the whole cache, cumulative since construction.

    Only the cache's thread changes them; any thread may read them.
    """

    tiers: list[TierCounters]
    """RAM first."""
    miss_blocks: int = 0
    """Blocks that the engine had to compute: no tier held them when they were saved."""
    expired_promotions: int = 0
    """Requests that stopped waiting for a lower tier at their deadline."""
    durations: list[tuple[int, str, float]] = field(default_factory=list)
    """(tier, direction, seconds) of finished transfer parts; `take_durations` empties it."""

    def take_durations(self) -> list[tuple[int, str, float]]:
        """Return and remove the durations recorded since the last call."""
        taken, self.durations = self.durations, []
        return taken


class Residency:
    """The record of which tier holds which block. Belongs to one thread and never blocks.

    Every insertion and removal is recorded in `events`. `policies[0]` orders RAM, `policies[t]`
    lower tier t. `group_suffixes` are the last bytes of the keys of one prefix position, one
    suffix per KV-cache group: a prefix is usable only where all groups are present, so the
    groups of a position are evicted together.
    """

    def __init__(
        self,
        arena: Arena,
        names: Sequence[str],
        policies: Sequence[EvictionPolicy],
        group_suffixes: Sequence[bytes] = (),
    ) -> None:
        self.index = LocalIndex(len(policies))
        self.arena = arena
        self.names = names
        self.policies = policies
        self.resident = [0] * len(policies)
        self.events: list[BlockEvent] = []
        self.counters = CacheCounters([TierCounters() for _ in policies])
        self._suffixes = tuple(group_suffixes) if len(group_suffixes) > 1 else ()
        self._evictable = [self.index.evictable(tier) for tier in range(len(policies))]

    def take_slots(self, rows: Sequence[int]) -> list[Slot] | None:
        """Allocate a slot for each of `rows`, evicting from RAM as needed.

        Return None, and allocate nothing, if not enough rows can be evicted.
        """
        count = len(rows)
        if count > self.arena.slots:
            return None
        short = count - self.arena.free
        if short > 0:
            self.evict(RAM, short, self._evictable[RAM])
            short = count - self.arena.free
        if short > 0:
            # What is left are parents that only RAM holds (their write was dropped) and whose
            # children a lower tier holds. Evicting one makes a hole in a prefix, which is
            # better than a RAM tier that admits nothing. The parents of `rows` are spared,
            # because no lookup would reach `rows` past the hole.
            pins, kids_in, parent = self.index.pins, self.index.kids_in[RAM], self.index.parent
            spared = {parent[row] for row in rows}
            self.evict(
                RAM, short, lambda row: not (pins[row] or kids_in[row]) and row not in spared
            )
        return self.arena.allocate(count)

    def make_room(self, tier: int, count: int) -> list[BlockKey]:
        """Evict up to `count` blocks from a lower tier; return their keys."""
        return self.evict(tier, count, self._evictable[tier])

    def evict(self, tier: int, count: int, evictable: Callable[[int], bool]) -> list[BlockKey]:
        """Evict from `tier` up to `count` rows that satisfy `evictable`; return their keys.

        Other groups of an evicted position are evicted with it and may exceed `count`.
        """
        policy, index = self.policies[tier], self.index
        evicted: list[BlockKey] = []
        while len(evicted) < count and (row := policy.victim(evictable)) is not None:
            key = index.keys[row]
            assert key is not None
            evicted.append(key)
            self._remove_row(row, tier)
            for suffix in self._suffixes:
                other = index.rows.get(BlockKey(key[: -len(suffix)] + suffix))
                if other is not None and index.held[other] >> tier & 1 and evictable(other):
                    policy.remove(other)
                    evicted.append(index.keys[other])  # type: ignore[arg-type]
                    self._remove_row(other, tier)
        if evicted:
            self.counters.tiers[tier].evicted_blocks += len(evicted)
            self._record(Change.REMOVED, tier, evicted)
        return evicted

    def insert(self, rows: Iterable[int], tier: int) -> list[BlockKey]:
        """Record that `tier` now holds `rows`, given in prefix order; return their keys."""
        index, policy = self.index, self.policies[tier]
        keys: list[BlockKey] = []
        rows = list(rows)
        # Deeper blocks go first, so that at the cold end of the policy a leaf comes before its
        # parent, which is not evictable as long as the leaf is there.
        for row in reversed(rows):
            key = index.keys[row]
            assert key is not None
            index.hold(row, tier)
            policy.insert(row, key)
            keys.append(key)
        keys.reverse()
        self.resident[tier] += len(keys)
        self._record(Change.STORED, tier, keys)
        return keys

    def remove(self, row: int, tier: int) -> None:
        """Record that `tier` lost the block for a reason other than eviction (corrupt, missing)."""
        key = self.index.keys[row]
        assert key is not None
        self.policies[tier].remove(row)
        self._remove_row(row, tier)
        self._record(Change.REMOVED, tier, [key])

    def pin(self, row: int) -> None:
        """Protect the row from eviction until `unpin`. Pins are counted."""
        self.index.pins[row] += 1

    def unpin(self, row: int) -> None:
        """Undo one `pin`, and free the row if nothing needs it any more."""
        index = self.index
        index.pins[row] -= 1
        if index.pins[row] == 0 and not index.held[row]:
            if index.state[row] == DISCARDED:
                self.free_slot(row)
                index.free_discarded(row)
            elif index.state[row] in (HOLE, IDLE):
                index.prune(row)

    def free_slot(self, row: int) -> None:
        """Release the row's slot to the arena, if it has one."""
        slot = self.index.slot[row]
        if slot != NONE:
            self.index.slot[row] = NONE
            self.arena.release([slot])

    def touch(self, rows: Sequence[int]) -> None:
        """Record a use of the blocks of a prefix, in order, in every tier that holds them."""
        held = self.index.held
        for tier, policy in enumerate(self.policies):
            bit = 1 << tier
            access = policy.access
            for row in reversed(rows):
                if held[row] & bit:
                    access(row)

    def _record(self, change: Change, tier: int, keys: Sequence[BlockKey]) -> None:
        if keys:
            self.events.append(BlockEvent(change, self.names[tier], tuple(keys)))

    def reset(self) -> list[int]:
        """Remove every block; return the rows in motion or pinned, see `LocalIndex.reset`."""
        index = self.index
        for tier, policy in enumerate(self.policies):
            bit = 1 << tier
            removed = [row for row, held in enumerate(index.held) if held & bit]
            self._record(Change.REMOVED, tier, [index.keys[row] for row in removed])  # type: ignore[misc]
            for row in removed:
                policy.remove(row)
            self.resident[tier] = 0
        idle = [
            row
            for row in range(len(index.keys))
            if index.state[row] in (IDLE, HOLE) and not index.pins[row]
        ]
        for row in idle:
            self.free_slot(row)
        return index.reset()

    def check(self) -> None:
        """Assert the invariants of this module. O(rows): for tests."""
        index, arena = self.index, self.arena
        resident = sum(1 for held in index.held if held & 1)
        moving = sum(
            1
            for row, state in enumerate(index.state)
            if index.slot[row] != NONE and state in (SAVING, PROMOTING, DISCARDED)
        )
        assert arena.free + resident + moving == arena.slots, (arena.free, resident, moving)
        assert self.resident[RAM] == resident == len(self.policies[RAM])
        for tier, policy in enumerate(self.policies):
            held_here = sum(1 for held in index.held if held >> tier & 1)
            assert held_here == self.resident[tier] == len(policy), (tier, held_here, len(policy))
        slots = [slot for slot in index.slot if slot != NONE]
        assert len(slots) == len(set(slots)), "two rows share a slot"
        assert min(index.pins, default=0) >= 0, "a pin was released twice"
        index.check()

    def _remove_row(self, row: int, tier: int) -> None:
        self.index.remove(row, tier)
        self.resident[tier] -= 1
        if tier == RAM:
            self.free_slot(row)
        self.index.prune(row)
