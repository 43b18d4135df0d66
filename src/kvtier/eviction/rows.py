"""Doubly linked lists of rows in two flat arrays, on which the eviction policies are built.

A list of node objects takes 100 bytes and more per row; two int32 arrays take 8, and one pair of
arrays serves several lists, since a row is in one list at a time. The ends of the two lists are
-1 and -2. Python reads index -1 as the last element of an array, so the last elements of the
arrays are the sentinels, and linking needs no branches.

Invariants: a row is in at most one list; the cell of a row in no list holds ABSENT; the hand of
a list is on a row that has not moved since the walk that found it, or on the end.
"""

from array import array
from collections.abc import Callable, Iterator

ABSENT = -3
"""Value of `older[row]` for a row that is in no list."""

_ENDS = 2
_FIRST_CELLS = 1024
_PASSES_A_VICTIM = 16


class Links:
    """The arrays that up to two lists share: 8 bytes per row, doubled on demand."""

    __slots__ = ("newer", "older")

    def __init__(self) -> None:
        self.older = array("i", [ABSENT]) * _FIRST_CELLS
        self.newer = array("i", [ABSENT]) * _FIRST_CELLS
        for end in range(-_ENDS, 0):
            self.older[end] = self.newer[end] = end

    @property
    def row_cells(self) -> int:
        """The number of rows that have a cell."""
        return len(self.older) - _ENDS

    def holds(self, row: int) -> bool:
        """Return True if some list holds `row`."""
        return 0 <= row < self.row_cells and self.older[row] != ABSENT

    def grow(self, row: int) -> None:
        """Extend the arrays in place to hold `row`, because the lists keep references to them."""
        missing = max(row + 1, 2 * self.row_cells) - self.row_cells
        for cells in (self.older, self.newer):
            ends = cells[-_ENDS:]
            cells[-_ENDS:] = array("i", [ABSENT]) * _ENDS
            cells.extend(array("i", [ABSENT]) * missing)
            cells[-_ENDS:] = ends


class RowList:
    """A list of rows from cold to hot.

    Every operation is O(1), `first_cold` amortized. Not thread-safe.
    """

    __slots__ = ("_credit", "_end", "_hand", "_links", "_newer", "_older", "_refused", "size")

    def __init__(self, links: Links, end: int = -1) -> None:
        self._links = links
        self._older = links.older
        self._newer = links.newer
        self._end = end
        self._hand = end
        self._credit = 0
        self._refused = 0
        self.size = 0

    def __iter__(self) -> Iterator[int]:
        """Yield the rows from cold to hot. The list must not change during the iteration."""
        row = self._newer[self._end]
        while row != self._end:
            yield row
            row = self._newer[row]

    def push(self, row: int) -> None:
        """Add a row that is in no list at the hot end."""
        older = self._older
        newer = self._newer
        end = self._end
        if row >= len(older) - _ENDS:
            self._links.grow(row)
        assert older[row] == ABSENT, row
        hottest = older[end]
        older[row] = hottest
        newer[row] = end
        newer[hottest] = row
        older[end] = row
        self.size += 1

    def unlink(self, row: int) -> None:
        """Remove a row from this list."""
        older = self._older
        newer = self._newer
        colder = older[row]
        assert colder != ABSENT, row
        hotter = newer[row]
        newer[colder] = hotter
        older[hotter] = colder
        older[row] = ABSENT
        if row == self._hand:
            self._hand = colder
        self.size -= 1

    def heat(self, row: int) -> None:
        """Move a row of this list to the hot end."""
        older = self._older
        newer = self._newer
        end = self._end
        colder = older[row]
        assert colder != ABSENT, row
        hotter = newer[row]
        if hotter == end:
            return
        newer[colder] = hotter
        older[hotter] = colder
        hottest = older[end]
        older[row] = hottest
        newer[row] = end
        newer[hottest] = row
        older[end] = row
        if row == self._hand:
            self._hand = colder

    def first_cold(self, accept: Callable[[int], bool]) -> int | None:
        """Return the coldest row that satisfies `accept`, or None.

        Cold rows may form long runs that `accept` rejects: the inner blocks of a long prefix,
        oldest first. Visiting all of them for each victim would be quadratic. So a walk starts
        one row colder than the last result, which is where the parent of an evicted leaf is.
        Every call earns a credit of `_PASSES_A_VICTIM` visits; once the credit covers the
        rejected rows, the walk starts at the cold end again.
        With fewer than `_PASSES_A_VICTIM` rejected rows the result is exact. With more, a row
        that has just become acceptable may be found only by the next full walk. None is
        returned only after a full walk.
        """
        newer = self._newer
        end = self._end
        row = self._hand
        self._credit += _PASSES_A_VICTIM
        passed = 0
        if row != end and self._credit < self._refused:
            while row != end and not accept(row):
                row = newer[row]
                passed += 1
            self._refused += passed
        else:
            row = end
        if row == end:
            self._credit = passed = 0
            row = newer[end]
            while row != end and not accept(row):
                row = newer[row]
                passed += 1
            self._refused = passed
        if row == end:
            self._hand = end
            return None
        self._hand = self._older[row]
        return row
