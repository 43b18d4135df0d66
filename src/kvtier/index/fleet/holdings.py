"""The blocks that one replica reported to hold: the engine's names as a tree, in flat columns.

Engines may remove a block before its children. Then prefixes have *holes*: blocks that a level
lacks while it holds something behind them. The tree knows for every block the fastest level that
holds anything behind it, so that the holes are known exactly at every moment and a bisected prefix
can be corrected for them.

An engine may have several copies of one block on a level, for example when requests with the same
prefix were computed side by side. It reports each copy that comes and goes, so they are counted.

Invariants: the byte in the table is that of `_held`; `_kids[level][row]` counts the children in
whose subtree `level` is the fastest; a row is a hole exactly if a faster level than the block's own
holds something behind it. A row is *idle* if nothing is held in it or behind it; the last IDLE_MAX
idle rows are kept, because the engine may report the name again without its tokens.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from kvtier.index.fleet.prompt import hash_of
from kvtier.index.fleet.table import ABSENT, CUMULATIVE, HELD, LEVELS, LOWEST, BlockTable

IDLE_MAX: Final = 4096
RECYCLED: Final = 256
"""Rows that are looked at to make room, the oldest first: half a millisecond."""
ROOT: Final = -1
"""The row before the first block of a prefix."""


class Holdings:
    """Rows by name. Takes 150 bytes per block beside the table's. Not thread-safe."""

    def __init__(
        self, table: BlockTable, slot: int, blocks_max: int, *, is_counted: bool = True
    ) -> None:
        """Create empty holdings. `is_counted`: each copy is reported when it comes and goes."""
        self.table = table
        self.slot = slot
        self.holes: set[int] = set()
        self.refused_blocks = 0
        """Blocks removed or not added for lack of room, or whose content has another name."""
        self._blocks_max = blocks_max
        self._is_counted = is_counted
        self._copies: dict[int, int] = {}
        """By row and level: the copies besides the first, if there are any."""
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._states = array("Q")
        self._names = array("Q")
        self._depths = array("I")
        self._parents = array("i")
        self._held = bytearray()
        self._kids: list[tuple[int, array[int]]] = []
        """The levels in use with their columns, the fastest first."""
        self._levels = 0

    def __len__(self) -> int:
        """The number of blocks known, including idle ones."""
        return len(self._rows)

    # -- reading ---------------------------------------------------------------------------

    def row(self, name: int) -> int | None:
        """Return the row of a block by the engine's name."""
        return self._rows.get(name)

    def name(self, row: int) -> int:
        """Return the engine's name of a block."""
        return self._names[row]

    def parent(self, row: int) -> int:
        """Return the row of the block before this one, or ROOT."""
        return self._parents[row]

    def state(self, row: int) -> int:
        """Return the hash state after the block."""
        return self._states[row]

    def depth(self, row: int) -> int:
        """Return the number of blocks of the prefix that this block ends."""
        return self._depths[row]

    def hashes(self) -> Iterator[int]:
        """Yield the hashes of all rows, idle ones included."""
        return (hash_of(self._states[row]) for row in self._rows.values())

    # -- changing --------------------------------------------------------------------------

    def add(self, name: int, state: int, depth: int, parent: int) -> int | None:
        """Add a row that holds nothing yet; return None if there is no room."""
        return self.add_path([(name, state, depth)], parent)

    def add_path(self, path: Iterable[tuple[int, int, int]], parent: int) -> int | None:
        """Add rows given by name, state and depth, each the child of the one before.

        Returns the last row, or None if there was not enough room for all.
        """
        self._defer(parent)
        # Idle rows from the barrier on belong to this path and must stay.
        barrier = row = parent
        for name, state, depth in path:
            if len(self._rows) >= self._blocks_max:
                if next(iter(self._idle), barrier) == barrier:
                    self._recycle(row)
                    barrier = row
                if next(iter(self._idle), barrier) == barrier:
                    self.refused_blocks += 1
                    self._defer(row)
                    return None
                self._remove_idle()
            row = self._place(name, state, depth, row)
            if barrier not in self._idle:
                barrier = row
        self._defer(row)
        return row

    def hold(self, row: int, level: int) -> None:
        """Note that a tier holds the block, or one more copy of it. Takes 2 us."""
        old = self._held[row]
        new = old | 1 << level
        if new == old:
            if self._is_counted:
                copy = row * LEVELS + level
                self._copies[copy] = self._copies.get(copy, 0) + 1
            return
        if not old and self.table.own_byte(hash_of(self._states[row]), self.slot) & HELD:
            self.refused_blocks += 1
            return
        if not self._levels >> level & 1:
            self._levels |= 1 << level
            self._kids.append((level, array("I", bytes(4 * len(self._states)))))
            self._kids.sort(key=lambda pair: pair[0])
        self._write(row, old, new)

    def remove(self, row: int, level: int) -> None:
        """Note that the block, or one copy of it, left a tier."""
        copies = self._copies.pop(row * LEVELS + level, 0) if self._copies else 0
        if copies > 1:
            self._copies[row * LEVELS + level] = copies - 1
        if not copies:
            self._remove_levels(row, 1 << level)
            self._trim()

    def reset(self, level: int) -> None:
        """Remove all blocks from a tier. Takes 2 us per block."""
        # Later rows first: children before their parents, so that no holes open on the way.
        rows = reversed(self._rows.values())
        for row in [row for row in rows if self._held[row] >> level & 1]:
            self._remove_levels(row, 1 << level)
        self._trim()

    @property
    def levels(self) -> int:
        """The bits of all levels that ever held a block."""
        return self._levels

    def _place(self, name: int, state: int, depth: int, parent: int) -> int:
        if self._free:
            row = self._free.pop()
            self._states[row], self._names[row] = state, name
            self._depths[row], self._parents[row] = depth, parent
        else:
            row = len(self._states)
            self._states.append(state)
            self._names.append(name)
            self._depths.append(depth)
            self._parents.append(parent)
            self._held.append(0)
            for _, counts in self._kids:
                counts.append(0)
        self._rows[name] = row
        self._idle[row] = None
        return row

    def _remove_levels(self, row: int, bits: int) -> None:
        """Remove a block from levels, with all its copies."""
        old = self._held[row]
        if not old & bits:
            return
        if self._copies:
            for level in range(LEVELS):
                if bits >> level & 1:
                    self._copies.pop(row * LEVELS + level, None)
        self._write(row, old, old & ~bits)

    def _write(self, row: int, old: int, new: int) -> None:
        self._held[row] = new
        self.table.set_held(hash_of(self._states[row]), self.slot, CUMULATIVE[new])
        if LOWEST[old] != LOWEST[new]:
            below = self._below(row)
            self._update_ancestors(row, LOWEST[new], below, min(LOWEST[old], below))

    def _update_ancestors(self, row: int, own: int, below: int, before: int) -> None:
        """Update holes and counts from `row` upwards, as far as anything changes.

        `own` and `below` are the fastest levels of the block and of everything behind it;
        `before` is the faster of the two before the change.
        """
        while True:
            if below < own:
                self.holes.add(row)
            else:
                self.holes.discard(row)
            after = min(own, below)
            if after == before:
                return
            if after == ABSENT:
                self._idle[row] = None
            elif before == ABSENT:
                self._idle.pop(row, None)
            row = self._parents[row]
            if row == ROOT:
                return
            was_below = self._below(row)
            for level, counts in self._kids:
                if level == before:
                    counts[row] -= 1
                elif level == after:
                    counts[row] += 1
            below = self._below(row)
            if below == was_below:
                return
            own = LOWEST[self._held[row]]
            before = min(own, was_below)

    def _below(self, row: int) -> int:
        """Return the fastest level that holds anything behind the block."""
        for level, counts in self._kids:
            if counts[row]:
                return level
        return ABSENT

    def _defer(self, row: int) -> None:
        """Move an idle row and those before it to the end of the order of removal."""
        while row in self._idle:
            self._idle.move_to_end(row)
            row = self._parents[row]

    def _recycle(self, needed: int) -> None:
        """Remove the ends of the oldest prefixes, except the one that ends in `needed`."""
        oldest = list(islice(self._rows.items(), RECYCLED))
        for name, row in reversed(oldest):
            if row != needed and self._below(row) == ABSENT:
                self.refused_blocks += bool(self._held[row])
                self._remove_levels(row, HELD)
            else:
                # Something behind it is held, so it goes to the end of the order.
                self._rows[name] = self._rows.pop(name)
        self._defer(needed)

    def _trim(self) -> None:
        while len(self._idle) > IDLE_MAX:
            self._remove_idle()

    def _remove_idle(self) -> None:
        """Remove the oldest idle row. Children become idle before their parents do."""
        row, _ = self._idle.popitem(last=False)
        del self._rows[self._names[row]]
        self._free.append(row)

    # -- prefixes --------------------------------------------------------------------------

    def gaps(self, chain: list[int]) -> Iterator[tuple[int, int]]:
        """Yield the holes on this chain: the number of blocks before each, and its hash."""
        for row in self.holes:
            depth = self._depths[row]
            hashed = hash_of(self._states[row])
            if depth <= len(chain) and chain[depth - 1] == hashed:
                yield depth - 1, hashed

    def check(self) -> None:
        """Assert that the invariants hold. For tests: visits every row."""
        kids = {row: [0] * LEVELS for row in self._rows.values()}
        best: dict[int, int] = {}
        for row in sorted(kids, key=self.depth, reverse=True):
            below = next((level for level, count in enumerate(kids[row]) if count), ABSENT)
            own = LOWEST[self._held[row]]
            best[row] = min(own, below)
            assert (row in self.holes) == (below < own)
            assert (row in self._idle) == (best[row] == ABSENT)
            parent = self._parents[row]
            if parent != ROOT:
                assert parent in kids, "a row whose parent is gone"
                if best[row] != ABSENT:
                    kids[parent][best[row]] += 1
            assert all(kids[row][level] == counts[row] for level, counts in self._kids)
            seen = self.table.own_byte(hash_of(self._states[row]), self.slot) & HELD
            assert not self._held[row] or seen == CUMULATIVE[self._held[row]]
        for copy in self._copies:
            assert self._held[copy // LEVELS] >> copy % LEVELS & 1, "copies of a block not held"
