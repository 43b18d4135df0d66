"""The index of one process: which tiers hold a block, in which slot, and how often it is pinned.

Ten million blocks must fit in memory next to the engine, so a block is not an object but a *row*, a
number that indexes flat columns. Tier 0 is RAM; tier `t` is bit `1 << t` of `held`.

Invariants:
* a row exists while a tier holds the block, while its bytes are in transfer, or while another row
  names it as its parent; a row kept only for its children is a *hole* and counts as absent;
* `kids_in[t][row]` is the number of children that tier `t` holds;
* while there are no holes and no detached rows, presence along a prefix is monotonic, so the
  longest prefix is found by bisection.
"""

from array import array
from collections.abc import Callable, Sequence
from enum import Enum

from kvtier.blocks.key import BlockKey

RAM = 0
NONE = -1
DETACHED = -2
"""A value of `parent`: the parent was not in the index when the row was created."""
MAX_TIERS = 8
"""Tiers including RAM: `held` is a byte of bits."""

IDLE, SAVING, PROMOTING, DISCARDED, HOLE = range(5)
"""States of a row. IDLE: no transfer. SAVING: the engine writes its slot. PROMOTING: bytes come
from a lower tier. DISCARDED: removed by `reset` during a transfer or while pinned. HOLE: kept only
for its children."""


class Presence(Enum):
    """The possible results of looking up one block."""

    READY = "ready"
    """Its verified bytes are in RAM."""
    PENDING = "pending"
    """Its bytes are on their way into RAM."""
    BELOW = "below"
    """A lower tier holds it."""
    UNKNOWN = "unknown"
    """This process knows no tier that holds it, but a shared tier may and is being asked."""
    ABSENT = "absent"
    """No tier holds it."""


class LocalIndex:
    """An index of blocks by key. Not thread-safe; methods neither block nor raise.

    The columns are public so that the loops of `cache/` over whole batches need no call per block.
    Only this module changes `rows`, `parent`, `kids` and `kids_in`.
    """

    def __init__(self, tiers: int) -> None:
        assert 1 <= tiers <= MAX_TIERS, tiers
        self.rows: dict[BlockKey, int] = {}
        self.keys: list[BlockKey | None] = []
        self.slot = array("i")
        self.held = bytearray()
        self.state = bytearray()
        self.pins = array("i")
        self.parent = array("i")
        self.kids = array("i")
        self.kids_in = [array("i") for _ in range(tiers)]
        self.holes = 0
        self.detached = 0
        self._free_rows: list[int] = []

    def __len__(self) -> int:
        """The number of blocks present or pending."""
        return len(self.rows) - self.holes

    def presence(self, key: BlockKey) -> Presence:
        """Return where one block is. O(1), no side effects."""
        row = self.rows.get(key)
        if row is None:
            return Presence.ABSENT
        if self.held[row] & 1:
            return Presence.READY
        if self.state[row] in (SAVING, PROMOTING):
            return Presence.PENDING
        return Presence.BELOW if self.held[row] else Presence.ABSENT

    def longest_prefix(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of a chain are present in some tier or pending.

        `keys` is one prefix chain in order. O(log n) probes, or O(n) while the index has any hole
        or detached row. No side effects.
        """
        rows = self.rows
        if self.holes or self.detached:
            state = self.state
            for length, key in enumerate(keys):
                row = rows.get(key)
                if row is None or state[row] == HOLE:
                    return length
            return len(keys)
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            if keys[middle] in rows:
                low = middle + 1
            else:
                high = middle
        return low

    def add(self, key: BlockKey, parent: BlockKey | None, state: int) -> int:
        """Return a row for `key`, which no tier holds: a new one, or the hole left for it.

        `parent` is None only for the first block of a prefix, because bisection relies on that. If
        the predecessor is unknown, pass UNKNOWN_PARENT or any key that is not in the index: the
        row is then detached.
        """
        row = self.rows.get(key)
        if row is not None:
            self.holes -= 1
            self.state[row] = state
            return row
        parent_row = NONE
        if parent is not None:
            parent_row = self.rows.get(parent, DETACHED)
            if parent_row >= 0:
                self.kids[parent_row] += 1
            else:
                self.detached += 1
        if self._free_rows:
            row = self._free_rows.pop()
            self.keys[row] = key
            self.state[row] = state
            self.parent[row] = parent_row
        else:
            row = len(self.keys)
            self.keys.append(key)
            self.slot.append(NONE)
            self.held.append(0)
            self.state.append(state)
            self.pins.append(0)
            self.parent.append(parent_row)
            self.kids.append(0)
            for column in self.kids_in:
                column.append(0)
        self.rows[key] = row
        return row

    def hold(self, row: int, tier: int) -> None:
        """Note that `tier` holds the block."""
        self.held[row] |= 1 << tier
        parent = self.parent[row]
        if parent >= 0:
            self.kids_in[tier][parent] += 1

    def remove(self, row: int, tier: int) -> None:
        """Note that `tier` no longer holds the block. Call `prune` after the last change."""
        self.held[row] &= ~(1 << tier) & 0xFF
        parent = self.parent[row]
        if parent >= 0:
            self.kids_in[tier][parent] -= 1

    def prune(self, row: int) -> None:
        """Free a row that nothing needs any more, and its ancestors that were holes."""
        while row >= 0 and not self.held[row] and self.state[row] in (IDLE, HOLE):
            if self.kids[row] or self.pins[row]:
                if self.state[row] == IDLE:
                    self.state[row] = HOLE
                    self.holes += 1
                return
            if self.state[row] == HOLE:
                self.holes -= 1
            row = self._free(row)

    def reset(self) -> list[int]:
        """Remove all blocks.

        Rows that are pinned or whose bytes are in transfer cannot be reused yet: they become
        DISCARDED, keep their slot, and are returned. `free_discarded` frees them one by one.
        """
        kept: list[int] = []
        self._free_rows.clear()
        for row in range(len(self.keys)):
            busy = self.state[row] in (SAVING, PROMOTING, DISCARDED) or self.pins[row]
            self.keys[row] = None
            self.held[row] = 0
            self.parent[row] = NONE
            self.kids[row] = 0
            for column in self.kids_in:
                column[row] = 0
            if busy:
                self.state[row] = DISCARDED
                kept.append(row)
            else:
                self.state[row] = IDLE
                self.slot[row] = NONE
                self._free_rows.append(row)
        self.rows.clear()
        self.holes = self.detached = 0
        return kept

    def free_discarded(self, row: int) -> None:
        """Free a DISCARDED row that is not pinned any more and whose transfer has ended."""
        self.state[row] = IDLE
        self.slot[row] = NONE
        self._free_rows.append(row)

    def evictable(self, tier: int) -> Callable[[int], bool]:
        """Return the predicate for `EvictionPolicy.victim`.

        A row is evictable if it is not pinned, if it is a leaf in `tier`, and if evicting it makes
        no hole.
        """
        pins, held, kids, kids_in = self.pins, self.held, self.kids, self.kids_in[tier]
        others = ~(1 << tier) & 0xFF

        def is_evictable(row: int) -> bool:
            return not (pins[row] or kids_in[row]) and bool(held[row] & others or not kids[row])

        return is_evictable

    def check(self) -> None:
        """Assert that all counts agree with the columns. O(rows), for tests."""
        kids = [0] * len(self.keys)
        kids_in = [[0] * len(self.keys) for _ in self.kids_in]
        for key, row in self.rows.items():
            assert self.keys[row] == key
            parent = self.parent[row]
            if parent < 0:
                continue
            assert self.keys[parent] is not None, "parent freed before its child"
            kids[parent] += 1
            for tier, column in enumerate(kids_in):
                column[parent] += self.held[row] >> tier & 1
        assert kids == self.kids.tolist()
        assert kids_in == [column.tolist() for column in self.kids_in]
        named = self.rows.values()
        holes = [row for row in named if self.state[row] == HOLE]
        assert self.holes == len(holes)
        assert not any(self.held[row] for row in holes)
        assert all(self.kids[row] or self.pins[row] for row in holes), "hole without need"
        assert all(
            self.held[row] or self.state[row] in (SAVING, PROMOTING, HOLE) for row in named
        ), "row without a tier or a transfer"
        assert self.detached == sum(self.parent[row] == DETACHED for row in named)
        discarded = sum(state == DISCARDED for state in self.state)
        assert len(self.rows) + len(self._free_rows) + discarded == len(self.keys)

    def _free(self, row: int) -> int:
        """Free `row`; return its parent if that is a hole, which may be free now, or NONE."""
        key = self.keys[row]
        if key is not None:
            del self.rows[key]
        self.keys[row] = None
        parent = self.parent[row]
        if parent >= 0:
            self.kids[parent] -= 1
        elif parent == DETACHED:
            self.detached -= 1
        self.parent[row] = NONE
        self.state[row] = IDLE
        self.slot[row] = NONE
        self._free_rows.append(row)
        return parent if parent >= 0 and self.state[parent] == HOLE else NONE
