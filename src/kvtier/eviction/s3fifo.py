"""S3-FIFO: a small queue filters out blocks that are used once before they reach the main queue.

Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction",
SOSP 2023.
It is the best of the simple policies where most blocks are requested only once, and `access`
writes a single byte.

Cost: `insert`, `access` and `remove` are O(1), `victim` is amortized O(1), since every row that
it moves was accessed before; 13 bytes per row, and at most as many ghosts as main rows.
Invariants: a row is in one queue; `_state` counts its uses since it last moved, up to 3.
"""

from array import array
from collections.abc import Callable

from kvtier.blocks.key import BlockKey
from kvtier.eviction.ghosts import Ghosts, fingerprint
from kvtier.eviction.rows import ABSENT, Links, RowList

_SMALL_PER_CENT = 10
_USES_MOST = 3
_USES_TO_PROMOTE = 2
_IN_MAIN = 4
"""The bit of the state byte that marks rows of the main queue; the lower two bits count uses."""


class S3Fifo:
    """The S3-FIFO `EvictionPolicy`."""

    __slots__ = (
        "_capacity_rows",
        "_fingerprints",
        "_ghosts",
        "_links",
        "_main",
        "_older",
        "_small",
        "_state",
    )

    def __init__(self, *, capacity_rows: int | None = None) -> None:
        self._links = Links()
        self._older = self._links.older
        self._small = RowList(self._links, -1)
        self._main = RowList(self._links, -2)
        self._ghosts = Ghosts()
        self._fingerprints = array("I", bytes(4 * self._links.row_cells))
        self._state = bytearray(self._links.row_cells)
        self._capacity_rows = capacity_rows

    def insert(self, row: int, key: BlockKey) -> None:
        """Add `row` to the small queue, or to the main queue if its block has a ghost."""
        ghost = fingerprint(key)
        returned = self._ghosts.take(ghost)
        (self._main if returned else self._small).push(row)
        if row >= len(self._state):
            self._grow()
        self._state[row] = _IN_MAIN if returned else 0
        self._fingerprints[row] = ghost

    def access(self, row: int) -> None:
        """Count a use of `row`, which keeps its place."""
        assert self._older[row] != ABSENT, row
        state = self._state[row]
        if state & _USES_MOST != _USES_MOST:
            self._state[row] = state + 1

    def remove(self, row: int) -> None:
        """Remove `row` without leaving a ghost."""
        (self._main if self._state[row] & _IN_MAIN else self._small).unlink(row)

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """Remove and return an old, rarely used row; from the small queue if above its share."""
        capacity = self._capacity_rows or len(self)
        if self._small.size * 100 < capacity * _SMALL_PER_CENT:
            row = self._main_victim(evictable)
            if row is not None:
                return row
        row = self._small_victim(evictable)
        # Without a victim, all evictable rows of the small queue have moved to the main queue.
        return row if row is not None else self._main_victim(evictable)

    def __len__(self) -> int:
        return self._small.size + self._main.size

    @property
    def ghosts(self) -> int:
        """The number of ghosts."""
        return len(self._ghosts)

    def _small_victim(self, evictable: Callable[[int], bool]) -> int | None:
        """Move used rows to the main queue, up to the first other row; evict that one."""
        small = self._small
        while (row := small.first_cold(evictable)) is not None:
            small.unlink(row)
            if self._state[row] < _USES_TO_PROMOTE:
                self._ghosts.add(self._fingerprints[row])
                self._ghosts.trim(max(1, self._main.size))
                return row
            self._main.push(row)
            self._state[row] = _IN_MAIN
        return None

    def _main_victim(self, evictable: Callable[[int], bool]) -> int | None:
        """Requeue used rows once per use, up to the first unused row; evict that one."""
        main = self._main
        while (row := main.first_cold(evictable)) is not None:
            if self._state[row] == _IN_MAIN:
                main.unlink(row)
                return row
            self._state[row] -= 1
            main.heat(row)
        return None

    def _grow(self) -> None:
        added = self._links.row_cells - len(self._state)
        self._state.extend(bytes(added))
        self._fingerprints.frombytes(bytes(4 * added))


PLUGIN = S3Fifo
