"""ARC: two LRU lists, for rows used once and rows used again, with a learned balance.

Source: Megiddo, Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003.
It resists scans like SIEVE and S3-FIFO, and adapts to workloads in which recency matters more.
It differs from the paper in one point: the cache asks for a victim before it names the block
that enters, so a ghost hit changes the balance for the next victim, not for the current one.

Cost: O(1), `victim` amortized (see `RowList.first_cold`); 13 bytes per row, and at most as many
ghosts as rows (see `ghosts`).
Invariants after each victim: |once| + |ghosts of once| <= capacity; all four lists together hold
fewer than 2 x capacity entries.
"""

from array import array
from collections.abc import Callable

from kvtier.blocks.key import BlockKey
from kvtier.eviction.ghosts import Ghosts, fingerprint
from kvtier.eviction.rows import Links, RowList


class Arc:
    """The ARC `EvictionPolicy`."""

    __slots__ = (
        "_again",
        "_again_ghosts",
        "_capacity_rows",
        "_fingerprints",
        "_follows_size",
        "_links",
        "_once",
        "_once_ghosts",
        "_once_target",
        "_used_again",
    )

    def __init__(self, *, capacity_rows: int | None = None) -> None:
        self._links = Links()
        self._once = RowList(self._links, -1)
        self._again = RowList(self._links, -2)
        self._once_ghosts = Ghosts()
        self._again_ghosts = Ghosts()
        self._fingerprints = array("I", bytes(4 * self._links.row_cells))
        self._used_again = bytearray(self._links.row_cells)
        self._capacity_rows = capacity_rows or 1
        self._follows_size = capacity_rows is None
        self._once_target = 0.0

    def insert(self, row: int, key: BlockKey) -> None:
        """Add `row` to the list of rows used once, or used again if its block has a ghost."""
        ghost = fingerprint(key)
        returned = self._adapt(ghost)
        (self._again if returned else self._once).push(row)
        if row >= len(self._used_again):
            self._grow()
        self._used_again[row] = returned
        self._fingerprints[row] = ghost

    def access(self, row: int) -> None:
        """Make `row` the most recent one of the rows used again."""
        if self._used_again[row]:
            self._again.heat(row)
        else:
            self._once.unlink(row)
            self._again.push(row)
            self._used_again[row] = True

    def remove(self, row: int) -> None:
        """Remove `row` without leaving a ghost."""
        (self._again if self._used_again[row] else self._once).unlink(row)

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """Remove and return the coldest evictable row, first from the list above its share."""
        if self._follows_size:
            self._capacity_rows = max(1, len(self))
        choices = [(self._once, self._once_ghosts), (self._again, self._again_ghosts)]
        if self._once.size <= self._once_target:
            choices.reverse()
        for rows, ghosts in choices:
            row = rows.first_cold(evictable)
            if row is not None:
                rows.unlink(row)
                ghosts.add(self._fingerprints[row])
                self._trim()
                return row
        return None

    def __len__(self) -> int:
        return self._once.size + self._again.size

    @property
    def ghosts(self) -> int:
        """The number of ghosts of both lists."""
        return len(self._once_ghosts) + len(self._again_ghosts)

    def _adapt(self, ghost: int) -> bool:
        """Shift the balance to the list that has `ghost`; return True if one of them has it."""
        once, again = len(self._once_ghosts), len(self._again_ghosts)
        if self._once_ghosts.take(ghost):
            grown = self._once_target + max(1.0, again / once)
            self._once_target = min(float(self._capacity_rows), grown)
            return True
        if self._again_ghosts.take(ghost):
            self._once_target = max(0.0, self._once_target - max(1.0, once / again))
            return True
        return False

    def _trim(self) -> None:
        capacity = self._capacity_rows
        self._once_ghosts.trim(max(0, capacity - self._once.size))
        self._again_ghosts.trim(max(0, 2 * capacity - 1 - len(self) - len(self._once_ghosts)))

    def _grow(self) -> None:
        added = self._links.row_cells - len(self._used_again)
        self._used_again.extend(bytes(added))
        self._fingerprints.frombytes(bytes(4 * added))


PLUGIN = Arc
