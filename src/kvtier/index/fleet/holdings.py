"""What one replica said that it holds: its own names of blocks, as a tree, in flat columns.

Engines may remove a block before its children. Then prefixes have *holes*: blocks that a level
lacks while it holds something behind them. The tree knows for every block the fastest level
that anything behind it is in, so that holes are known exactly at every moment and a bisected
prefix can be corrected for them.

Invariants: the byte in the table is that of `_held`; `_kids[level][row]` counts the children in
whose subtree `level` is the fastest; a row is a hole exactly if something behind it is in a
faster level than the block itself; a row that holds nothing and has nothing behind it is kept
as one of the last DEPARTED_MAX, because its name may be told again without its tokens.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from kvtier.index.fleet.hashing import hash_of
from kvtier.index.fleet.levels import ABSENT, CUMULATIVE, HELD, LEVELS, LOWEST
from kvtier.index.fleet.table import BlockTable

DEPARTED_MAX: Final = 4096
ROOT: Final = -1
"""The row before the first block of a prefix."""


class Holdings:
    """Rows by name. 150 bytes a block beside the table's. One thread."""

    def __init__(self, table: BlockTable, slot: int, blocks_max: int) -> None:
        self.table = table
        self.slot = slot
        self.holes: set[int] = set()
        self.refused_blocks = 0
        """For want of room, or because another name had the same content."""
        self._blocks_max = blocks_max
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self._departed: OrderedDict[int, None] = OrderedDict()
        self._states = array("Q")
        self._names = array("Q")
        self._depths = array("I")
        self._parents = array("i")
        self._held = bytearray()
        self._kids: list[tuple[int, array[int]]] = []
        """Levels in use with their columns, the fastest first."""
        self._levels = 0

    def __len__(self) -> int:
        """Blocks that are held in any tier, and those known beside them."""
        return len(self._rows)

    # -- what is known of a block ----------------------------------------------------------

    def row(self, name: int) -> int | None:
        """By the engine's name."""
        return self._rows.get(name)

    def name(self, row: int) -> int:
        """As the engine calls it."""
        return self._names[row]

    def parent(self, row: int) -> int:
        """The row before, or ROOT."""
        return self._parents[row]

    def state(self, row: int) -> int:
        """The hash's state after the block."""
        return self._states[row]

    def depth(self, row: int) -> int:
        """Blocks of the prefix that it ends."""
        return self._depths[row]

    def hashes(self) -> Iterator[int]:
        """Of all rows, held or not."""
        return (hash_of(self._states[row]) for row in self._rows.values())

    # -- changing it -----------------------------------------------------------------------

    def add(self, name: int, state: int, depth: int, parent: int) -> int | None:
        """A row for a new name, holding nothing yet; None where there is no room."""
        self._keep(parent)
        if len(self._rows) >= self._blocks_max:
            if next(iter(self._departed), parent) == parent:
                self.refused_blocks += 1
                return None
            self._drop_departed()
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
        self._departed[row] = None
        self._keep(parent)
        return row

    def hold(self, row: int, level: int) -> None:
        """The tier has it. Two microseconds."""
        old = self._held[row]
        new = old | 1 << level
        if new == old:
            return
        if not old and self.table.own_byte(hash_of(self._states[row]), self.slot) & HELD:
            self.refused_blocks += 1
            return
        if not self._levels >> level & 1:
            self._levels |= 1 << level
            self._kids.append((level, array("I", bytes(4 * len(self._states)))))
            self._kids.sort(key=lambda pair: pair[0])
        self._write(row, old, new)

    def let_go(self, row: int, level: int) -> None:
        """The tier has it no more."""
        old = self._held[row]
        new = old & ~(1 << level)
        if new != old:
            self._write(row, old, new)

    def empty(self, level: int) -> None:
        """The tier has nothing any more. Two microseconds for each block that it had."""
        # The last told first: children before their parents, so that no holes open on the way.
        rows = reversed(self._rows.values())
        for row in [row for row in rows if self._held[row] >> level & 1]:
            self.let_go(row, level)

    def _write(self, row: int, old: int, new: int) -> None:
        self._held[row] = new
        self.table.set_held(hash_of(self._states[row]), self.slot, CUMULATIVE[new])
        if LOWEST[old] != LOWEST[new]:
            below = self._below(row)
            self._settle(row, LOWEST[new], below, min(LOWEST[old], below))

    def _settle(self, row: int, own: int, below: int, before: int) -> None:
        """Bring holes and counts up to date, from `row` up as far as anything changes.

        `own` and `below`: the fastest level of the block, and of what is behind it; `before`:
        the faster of the two as it was.
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
                self._departed[row] = None
                if len(self._departed) > DEPARTED_MAX:
                    self._drop_departed()
            elif before == ABSENT:
                self._departed.pop(row, None)
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
        for level, counts in self._kids:
            if counts[row]:
                return level
        return ABSENT

    def _keep(self, row: int) -> None:
        """Let a departed row and those before it depart last."""
        while row in self._departed:
            self._departed.move_to_end(row)
            row = self._parents[row]

    def _drop_departed(self) -> None:
        """Children depart before their parents, so no row is left without its parent's."""
        row, _ = self._departed.popitem(last=False)
        del self._rows[self._names[row]]
        self._free.append(row)

    # -- prefixes --------------------------------------------------------------------------

    def gaps(self, chain: list[int]) -> Iterator[tuple[int, int]]:
        """Holes on this chain: the blocks before each, and its hash."""
        for row in self.holes:
            depth = self._depths[row]
            hashed = hash_of(self._states[row])
            if depth <= len(chain) and chain[depth - 1] == hashed:
                yield depth - 1, hashed

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold. For tests: walks everything."""
        kids = {row: [0] * LEVELS for row in self._rows.values()}
        best: dict[int, int] = {}
        for row in sorted(kids, key=self.depth, reverse=True):
            below = next((level for level, count in enumerate(kids[row]) if count), ABSENT)
            own = LOWEST[self._held[row]]
            best[row] = min(own, below)
            assert (row in self.holes) == (below < own)
            assert (row in self._departed) == (best[row] == ABSENT)
            parent = self._parents[row]
            if parent != ROOT:
                assert parent in kids, "a row whose parent is gone"
                if best[row] != ABSENT:
                    kids[parent][best[row]] += 1
            assert all(kids[row][level] == counts[row] for level, counts in self._kids)
            seen = self.table.own_byte(hash_of(self._states[row]), self.slot) & HELD
            assert not self._held[row] or seen == CUMULATIVE[self._held[row]]
