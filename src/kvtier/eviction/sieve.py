"""SIEVE: rows stay in insertion order; a moving hand evicts rows that were not visited.

Source: Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU", NSDI 2024.
It is as simple as LRU, but a scan of blocks that are used once cannot flush it, and `access`
writes a single byte.

Cost: `insert`, `access` and `remove` are O(1), `victim` is amortized O(1) plus the number of
non-evictable rows it passes; 9 bytes per row.
Invariants: rows never move; the hand is on a resident row or on none; the `_refused` rows before
the hand were not evictable when it passed them, and none of them has been removed since.
"""

from collections.abc import Callable

from kvtier.blocks.key import BlockKey
from kvtier.eviction.rows import ABSENT, Links

_END = -1
_TURNS = 2
"""Turns of the hand after which every row has lost its mark and was offered to `evictable`."""


class Sieve:
    """The SIEVE `EvictionPolicy`. `capacity_rows` has no effect."""

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
        """Add `row` as the newest one, not visited."""
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
        """Mark `row` as visited: the hand will spare it once."""
        assert self._older[row] != ABSENT, row
        self._visited[row] = 1

    def remove(self, row: int) -> None:
        """Remove `row`; if the hand is on it, the hand moves to the next newer row."""
        self._refused = 0
        self._unlink(row)

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """Move the hand to the first unvisited row that satisfies `evictable`; evict that row.

        After a victim the hand goes back over the rows that were not evictable just before it.
        They are most likely its parents; otherwise each turn of the hand would evict only the
        last block of every prefix.
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
