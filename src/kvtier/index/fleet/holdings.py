"""What one replica said that it holds: its own names of blocks, as a tree, in flat columns.

Engines may remove a block before its children. Then prefixes have *holes*: blocks that a level
lacks while it holds something behind them. The tree knows for every block the fastest level
that anything behind it is in, so that holes are known exactly at every moment and a bisected
prefix can be corrected for them.

An engine may have several copies of one block on a level, as when requests with one prefix were
computed side by side; it tells each that comes and each that goes, and so they are counted.

Invariants: the byte in the table is that of `_held`; `_kids[level][row]` counts the children in
whose subtree `level` is the fastest; a row is a hole exactly if something behind it is in a
faster level than the block itself; a row that holds nothing and has nothing behind it is kept
as one of the last DEPARTED_MAX, because its name may be told again without its tokens.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from kvtier.index.fleet.hashing import hash_of
from kvtier.index.fleet.levels import ABSENT, CUMULATIVE, HELD, LEVELS, LOWEST
from kvtier.index.fleet.table import BlockTable

DEPARTED_MAX: Final = 4096
RECYCLED: Final = 256
"""Rows that are looked at when room is needed, the oldest first: half a millisecond."""
ROOT: Final = -1
"""The row before the first block of a prefix."""


class Holdings:
    """Rows by name. 150 bytes a block beside the table's. One thread."""

    def __init__(
        self, table: BlockTable, slot: int, blocks_max: int, *, is_counted: bool = True
    ) -> None:
        """`is_counted`: each copy is told when it comes and when it goes."""
        self.table = table
        self.slot = slot
        self.holes: set[int] = set()
        self.refused_blocks = 0
        """Forgotten for want of room, or not taken; or because another name had the content."""
        self._blocks_max = blocks_max
        self._is_counted = is_counted
        self._copies: dict[int, int] = {}
        """By row and level: copies besides the first, where there are any."""
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
        return self.add_path([(name, state, depth)], parent)

    def add_path(self, path: Iterable[tuple[int, int, int]], parent: int) -> int | None:
        """Rows for new names with state and depth, each the child of the one before.

        The last of them; None where there was no room for all.
        """
        self._keep(parent)
        # What departed from the barrier on is needed: it is of this path.
        barrier = row = parent
        for name, state, depth in path:
            if len(self._rows) >= self._blocks_max:
                if next(iter(self._departed), barrier) == barrier:
                    self._recycle(row)
                    barrier = row
                if next(iter(self._departed), barrier) == barrier:
                    self.refused_blocks += 1
                    self._keep(row)
                    return None
                self._drop_departed()
            row = self._place(name, state, depth, row)
            if barrier not in self._departed:
                barrier = row
        self._keep(row)
        return row

    def hold(self, row: int, level: int) -> None:
        """The tier has it, or one copy more. Two microseconds."""
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

    def let_go(self, row: int, level: int) -> None:
        """The tier has it no more, or one copy less."""
        copies = self._copies.pop(row * LEVELS + level, 0) if self._copies else 0
        if copies > 1:
            self._copies[row * LEVELS + level] = copies - 1
        if not copies:
            self._lose(row, 1 << level)
            self._trim()

    def empty(self, level: int) -> None:
        """The tier has nothing any more. Two microseconds for each block that it had."""
        # The last told first: children before their parents, so that no holes open on the way.
        rows = reversed(self._rows.values())
        for row in [row for row in rows if self._held[row] >> level & 1]:
            self._lose(row, 1 << level)
        self._trim()

    @property
    def levels(self) -> int:
        """Bits of those that anything was ever told of."""
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
        self._departed[row] = None
        return row

    def _lose(self, row: int, bits: int) -> None:
        """Levels have nothing of it any more, however many copies there were."""
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

    def _recycle(self, needed: int) -> None:
        """Forget the ends of the oldest prefixes, other than the one that ends in `needed`."""
        oldest = list(islice(self._rows.items(), RECYCLED))
        for name, row in reversed(oldest):
            if row != needed and self._below(row) == ABSENT:
                self.refused_blocks += bool(self._held[row])
                self._lose(row, HELD)
            else:
                self._rows[name] = self._rows.pop(name)  # there is something behind it
        self._keep(needed)

    def _trim(self) -> None:
        while len(self._departed) > DEPARTED_MAX:
            self._drop_departed()

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
        for copy in self._copies:
            assert self._held[copy // LEVELS] >> copy % LEVELS & 1, "copies of nothing"
