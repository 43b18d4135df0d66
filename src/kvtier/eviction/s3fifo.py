"""S3-FIFO: a small queue sieves out blocks that never return before they reach the main one.

Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction",
SOSP 2023.
Why it is here: the best of the simple ones where most blocks are asked for only once, and
`access` writes a single byte.
Costs: `insert`, `access`, `remove` O(1); `victim` amortised O(1), since each row it moves has
paid with an access. Memory: 13 bytes a row, and at most as many ghosts as main rows.
Invariants: a row is in one queue; `_state` holds its uses since it last moved, 3 at most.
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
"""This bit of the state byte names the queue; the lower two count uses."""


class S3Fifo:
    """An `EvictionPolicy`."""

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
        """`row` is the newest of the small queue, or of the main one if it left lately."""
        ghost = fingerprint(key)
        returned = self._ghosts.take(ghost)
        (self._main if returned else self._small).push(row)
        if row >= len(self._state):
            self._grow()
        self._state[row] = _IN_MAIN if returned else 0
        self._fingerprints[row] = ghost

    def access(self, row: int) -> None:
        """Count a use; `row` does not move."""
        assert self._older[row] != ABSENT, row
        state = self._state[row]
        if state & _USES_MOST != _USES_MOST:
            self._state[row] = state + 1

    def remove(self, row: int) -> None:
        """Forget `row`; it leaves no ghost."""
        (self._main if self._state[row] & _IN_MAIN else self._small).unlink(row)

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """The oldest evictable row that was hardly used, of the queue that is over its share."""
        capacity = self._capacity_rows or len(self)
        if self._small.size * 100 >= capacity * _SMALL_PER_CENT:
            row = self._small_victim(evictable)
            return row if row is not None else self._main_victim(evictable)
        row = self._main_victim(evictable)
        return row if row is not None else self._small_victim(evictable)

    def __len__(self) -> int:
        return self._small.size + self._main.size

    @property
    def ghosts(self) -> int:
        """Blocks remembered that are not resident."""
        return len(self._ghosts)

    def _small_victim(self, evictable: Callable[[int], bool]) -> int | None:
        """Promote rows that were used; the first that was not leaves, and a ghost stays."""
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
        """Give rows that were used another round for each use; the first that was not leaves."""
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
