"""Which tier holds which block, in which slot: index, policies and arena kept in step.

Invariants: `free + resident + moving == slots` (the conservation law, `check`); a row is in
tier t's policy exactly while t holds it; a pinned row is never a victim; the slot of a row is
released when RAM lets go of it and not before.
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
    """One tier. RAM reads and writes are those of the engine, lower tiers' those of `transfer`."""

    hit_blocks: int = 0
    """Blocks given to the engine that this tier supplied."""
    read_blocks: int = 0
    written_blocks: int = 0
    evicted_blocks: int = 0
    corrupt_blocks: int = 0
    """Failed verification; dropped and served as misses."""
    missing_blocks: int = 0
    """The tier did not have what it was believed to hold."""
    fault_blocks: int = 0
    """The device refused; served as misses, or not kept."""
    rejected_blocks: int = 0
    """Turned away by the admission policy."""
    dropped_blocks: int = 0
    """Not kept because of back-pressure: a full queue, or no slot that could be freed."""


@dataclass(slots=True)
class CacheCounters:
    """The whole cache: `tiers[0]` is RAM."""

    tiers: list[TierCounters]
    miss_blocks: int = 0
    """Blocks the engine had to compute: no tier held them when they were saved."""
    expired_promotions: int = 0
    """Requests that stopped waiting for a lower tier at their deadline."""
    durations: list[tuple[int, str, float]] = field(default_factory=list)
    """(tier, direction, seconds) of finished transfer parts; `take_durations` empties it."""

    def take_durations(self) -> list[tuple[int, str, float]]:
        """The durations since the last call."""
        taken, self.durations = self.durations, []
        return taken


class Residency:
    """Enters and leaves blocks, makes room, and notes the events. One thread, never blocks.

    `policies[0]` orders RAM, `policies[t]` lower tier t. `group_suffixes` are the last bytes of
    the keys of one prefix position, one per KV-cache group: a prefix is usable only where every
    group is there, so the groups of a position leave together.
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
        """A slot for each of `rows`, evicting from RAM what must go; None if too little may go."""
        count = len(rows)
        if count > self.arena.slots:
            return None
        short = count - self.arena.free
        if short > 0:
            self.evict(RAM, short, self._evictable[RAM])
            short = count - self.arena.free
        if short > 0:
            # Only parents are left whose children a lower tier holds and they themselves not
            # (their write was dropped). A hole in a prefix beats a RAM tier that is stuck, but
            # not above the rows that the slots are for: they would be out of reach.
            pins, kids_in, parent = self.index.pins, self.index.kids_in[RAM], self.index.parent
            spared = {parent[row] for row in rows}
            self.evict(
                RAM, short, lambda row: not (pins[row] or kids_in[row]) and row not in spared
            )
        return self.arena.allocate(count)

    def make_room(self, tier: int, count: int) -> list[BlockKey]:
        """Let a lower tier forget up to `count` blocks that it may; returns their keys."""
        return self.evict(tier, count, self._evictable[tier])

    def evict(self, tier: int, count: int, evictable: Callable[[int], bool]) -> list[BlockKey]:
        """Let `tier` forget up to `count` rows that satisfy `evictable` (companions are extra)."""
        policy, index = self.policies[tier], self.index
        gone: list[BlockKey] = []
        while len(gone) < count and (row := policy.victim(evictable)) is not None:
            key = index.keys[row]
            assert key is not None
            gone.append(key)
            self._remove_row(row, tier)
            for suffix in self._suffixes:
                other = index.rows.get(BlockKey(key[: -len(suffix)] + suffix))
                if other is not None and index.held[other] >> tier & 1 and evictable(other):
                    policy.remove(other)
                    gone.append(index.keys[other])  # type: ignore[arg-type]
                    self._remove_row(other, tier)
        if gone:
            self.counters.tiers[tier].evicted_blocks += len(gone)
            self._record(Change.REMOVED, tier, gone)
        return gone

    def insert(self, rows: Iterable[int], tier: int) -> list[BlockKey]:
        """`tier` now holds `rows`, given in prefix order."""
        index, policy = self.index, self.policies[tier]
        keys: list[BlockKey] = []
        rows = list(rows)
        # The deeper block first, so that the cold end of the policy meets leaves before the
        # parents that cannot leave yet.
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
        """`tier` lost the block otherwise than by eviction (corrupt, missing)."""
        key = self.index.keys[row]
        assert key is not None
        self.policies[tier].remove(row)
        self._remove_row(row, tier)
        self._record(Change.REMOVED, tier, [key])

    def pin(self, row: int) -> None:
        """The row is in use: it is no victim until `unpin`."""
        self.index.pins[row] += 1

    def unpin(self, row: int) -> None:
        """Undo one `pin`; a row that nothing needs any more is freed."""
        index = self.index
        index.pins[row] -= 1
        if index.pins[row] == 0 and not index.held[row]:
            if index.state[row] == DISCARDED:
                self.free_slot(row)
                index.free_discarded(row)
            elif index.state[row] in (HOLE, IDLE):
                index.prune(row)

    def free_slot(self, row: int) -> None:
        """Give the row's slot back to the arena."""
        slot = self.index.slot[row]
        if slot != NONE:
            self.index.slot[row] = NONE
            self.arena.release([slot])

    def touch(self, rows: Sequence[int]) -> None:
        """The blocks of a prefix, in order, were used: every tier that holds them hears it."""
        held = self.index.held
        for tier, policy in enumerate(self.policies):
            bit = 1 << tier
            access = policy.access
            for row in reversed(rows):
                if held[row] & bit:
                    access(row)

    def _record(self, change: Change, tier: int, keys: Sequence[BlockKey]) -> None:
        """Note an event; the driver takes them."""
        if keys:
            self.events.append(BlockEvent(change, self.names[tier], tuple(keys)))

    def reset(self) -> list[int]:
        """Forget every block. Returns the rows that still move or are pinned (see LocalIndex)."""
        index = self.index
        for tier, policy in enumerate(self.policies):
            bit = 1 << tier
            gone = [row for row, held in enumerate(index.held) if held & bit]
            self._record(Change.REMOVED, tier, [index.keys[row] for row in gone])  # type: ignore[misc]
            for row in gone:
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
        """Assert the conservation law. O(rows): for tests, and for a doubtful moment."""
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
