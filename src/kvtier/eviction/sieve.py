"""SIEVE: rows stay in order of arrival; a hand passes over them and spares each visited once.

Source: Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU", NSDI 2024.
Why it is here: as simple as LRU, but one scan of blocks that never return cannot flush it, and
`access` writes a single byte.
Costs: `insert`, `access`, `remove` O(1); `victim` amortised O(1) plus the rows refused on the
way. Memory: 9 bytes a row.
Invariants: rows never move; the hand stands on a resident row, or on no row.
"""

from collections.abc import Callable

from kvtier.blocks.key import BlockKey
from kvtier.eviction.rows import ABSENT, Links

_END = -1
_TURNS = 2
"""Turns of the hand until every row has lost its mark and been asked."""


class Sieve:
    """An `EvictionPolicy`. `capacity_rows` has no influence."""

    __slots__ = ("_hand", "_links", "_newer", "_older", "_size", "_visited")

    def __init__(self, *, capacity_rows: int | None = None) -> None:
        self._links = Links()
        self._older = self._links.older
        self._newer = self._links.newer
        self._visited = bytearray(self._links.row_cells)
        self._hand = _END
        self._size = 0

    def insert(self, row: int, key: BlockKey) -> None:
        """`row` is now the newest, not visited."""
        if row >= len(self._visited):
            self._links.grow(row)
            self._visited.extend(bytes(self._links.row_cells - len(self._visited)))
        older = self._older
        newer = self._newer
        assert older[row] == ABSENT, row
        newest = older[_END]
        older[row] = newest
        newer[row] = _END
        newer[newest] = row
        older[_END] = row
        self._visited[row] = 0
        self._size += 1

    def access(self, row: int) -> None:
        """The hand will spare `row` once."""
        assert self._older[row] != ABSENT, row
        self._visited[row] = 1

    def remove(self, row: int) -> None:
        """Forget `row`; a hand on it moves on to the next newer row."""
        older = self._older
        newer = self._newer
        colder = older[row]
        assert colder != ABSENT, row
        hotter = newer[row]
        newer[colder] = hotter
        older[hotter] = colder
        older[row] = ABSENT
        if row == self._hand:
            self._hand = hotter
        self._size -= 1

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """The first row under the hand that is not visited and satisfies `evictable`, removed.

        A row refused right before the victim is the likely parent of it: the hand steps back
        to that row, or each turn would take only the last block of every prefix.
        """
        visited = self._visited
        newer = self._newer
        row = self._hand
        refused = _END
        turns = 0
        while True:
            if row == _END:
                turns += 1
                if turns > _TURNS:
                    return None
                row = newer[_END]
                refused = _END
                if row == _END:
                    return None
            if visited[row]:
                visited[row] = 0
                refused = _END
            elif evictable(row):
                break
            else:
                refused = row
            row = newer[row]
        self._hand = row if refused == _END else refused
        self.remove(row)
        return row

    def __len__(self) -> int:
        return self._size


PLUGIN = Sieve
