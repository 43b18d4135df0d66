"""LRU: evicts the row that was least recently used.

It is the order that engines use for device memory, the cheapest one, and the baseline for the
others.

Cost: every operation is O(1), `victim` amortized (see `RowList.first_cold`); 8 bytes per row.
Invariant: rows are ordered by their last use; rows that `victim` skips do not move.
"""

from collections.abc import Callable

from kvtier.blocks.key import BlockKey
from kvtier.eviction.rows import Links, RowList


class Lru:
    """The LRU `EvictionPolicy`. `capacity_rows` has no effect."""

    __slots__ = ("_rows", "access", "remove")

    def __init__(self, *, capacity_rows: int | None = None) -> None:
        self._rows = RowList(Links())
        # Bound directly to save a call per row: `heat` and `unlink` do all the work.
        self.access = self._rows.heat
        self.remove = self._rows.unlink

    def insert(self, row: int, key: BlockKey) -> None:
        """Add `row` as the most recent one."""
        self._rows.push(row)

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """Remove and return the coldest row that satisfies `evictable`; None if there is none."""
        row = self._rows.first_cold(evictable)
        if row is not None:
            self._rows.unlink(row)
        return row

    def __len__(self) -> int:
        return self._rows.size


PLUGIN = Lru
