"""SIEVE: rows stay in order of arrival; a hand passes over them and spares each visited once.

Source: Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU", NSDI 2024.
Why it is here: as simple as LRU, but one scan of blocks that never return cannot flush it, and
`access` writes a single byte.
Costs: `insert`, `access`, `remove` O(1); `victim` amortised O(1) plus the rows refused on the
way. Memory: 9 bytes a row.
Invariants: rows never move; the hand stands on a resident row, or on no row;
`_refused` rows right before the hand have been refused, and none of them was removed.
"""

from collections.abc import Callable

from kvtier.blocks.key import BlockKey
from kvtier.eviction.rows import ABSENT, Links

_END = -1
_TURNS = 2
"""Turns of the hand until every row has lost its mark and been asked."""


class Sieve:
    """An `EvictionPolicy`. `capacity_rows` has no influence."""

    __slots__ = ("_hand", "_links", "_newer", "_older", "_refused", "_size", "_visited")

    def __init__(self, *, capacity_rows: int | None = None) -> None:
        self._links = Links()
        self._older = self._links.older
        self._newer = self._links.newer
        self._visited = bytearray(self._links.row_cells)
        self._hand = _END
        self._refused = 0
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
        self._refused = 0
        self._unlink(row)

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """The first row under the hand that is not visited and satisfies `evictable`, removed.

        From a victim the hand steps back while there are rows it has just been refused: its
        parents, most likely. Or each turn would take only the last block of every prefix.
        """
        visited = self._visited
        newer = self._newer
        row = self._hand
        turns = 0
        while True:
            if row == _END:
                turns += 1
                self._refused = 0
                row = newer[_END]
                if turns > _TURNS or row == _END:
                    return None
            if visited[row]:
                visited[row] = 0
                self._refused = 0
            elif evictable(row):
                break
            else:
                self._refused += 1
            row = newer[row]
        self._hand = row
        colder = self._older[row]
        self._unlink(row)
        if self._refused:
            self._refused -= 1
            self._hand = colder
        return row

    def __len__(self) -> int:
        return self._size

    def _unlink(self, row: int) -> None:
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


PLUGIN = Sieve
