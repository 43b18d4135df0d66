"""Least recently used: the row whose last use is longest ago leaves first.

Why it is here: the order that engines themselves use, the cheapest, and the one to beat.
Costs: every operation O(1), `victim` amortised (see `RowList.first_cold`). Memory: 8 bytes a
row.
Invariant: cold to hot is the order of last use; rows passed by `victim` do not move.
"""

from collections.abc import Callable

from kvtier.blocks.key import BlockKey
from kvtier.eviction.rows import Links, RowList


class Lru:
    """An `EvictionPolicy`. `capacity_rows` has no influence."""

    __slots__ = ("_rows", "access", "remove")

    def __init__(self, *, capacity_rows: int | None = None) -> None:
        self._rows = RowList(Links())
        # Bound here to spare a call for each row: `heat` and `unlink` are all there is to do.
        self.access = self._rows.heat
        self.remove = self._rows.unlink

    def insert(self, row: int, key: BlockKey) -> None:
        """`row` is now the most recent."""
        self._rows.push(row)

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """The coldest row that satisfies `evictable`, removed; None if there is none."""
        row = self._rows.first_cold(evictable)
        if row is not None:
            self._rows.unlink(row)
        return row

    def __len__(self) -> int:
        return self._rows.size


PLUGIN = Lru
