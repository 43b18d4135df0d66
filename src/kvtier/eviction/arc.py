"""ARC: two LRU lists, of rows used once and of rows used again, whose balance it learns.

Source: Megiddo, Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003.
Why it is here: it resists scans like SIEVE and S3-FIFO, and adapts where recency pays.
One difference from the paper: the cache asks for a victim before it names the block that comes
in, so a ghost hit moves the balance for the next victim, not for the one it caused.
Costs: O(1), `victim` amortised (see `RowList.first_cold`). Memory: 13 bytes a row, and as many
ghosts as rows at most (see `ghosts`).
Invariants, after each victim: |once| + |ghosts of once| <= capacity, all four lists together
< 2 x capacity.
"""

from array import array
from collections.abc import Callable

from kvtier.blocks.key import BlockKey
from kvtier.eviction.ghosts import Ghosts, fingerprint
from kvtier.eviction.rows import Links, RowList


class Arc:
    """An `EvictionPolicy`."""

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
        """`row` is used once, or again if the block left a short while ago."""
        ghost = fingerprint(key)
        returned = self._adapt(ghost)
        (self._again if returned else self._once).push(row)
        if row >= len(self._used_again):
            self._grow()
        self._used_again[row] = returned
        self._fingerprints[row] = ghost

    def access(self, row: int) -> None:
        """`row` is the most recent of those used again."""
        if self._used_again[row]:
            self._again.heat(row)
        else:
            self._once.unlink(row)
            self._again.push(row)
            self._used_again[row] = True

    def remove(self, row: int) -> None:
        """Forget `row`; it leaves no ghost."""
        (self._again if self._used_again[row] else self._once).unlink(row)

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """The coldest evictable row of the list that is over its share, else of the other."""
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
        """Blocks remembered that are not resident."""
        return len(self._once_ghosts) + len(self._again_ghosts)

    def _adapt(self, ghost: int) -> bool:
        """Shift the balance to the list that should have kept the block, if one had it."""
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
