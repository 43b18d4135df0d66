"""Doubly linked lists of rows in two flat arrays: what the eviction policies are built from.

Why: a list of node objects costs 100 bytes and more a row; two int32 arrays cost 8, and one
pair of arrays serves several lists at once, since a row is in one list at a time.
Trick: links use -1 and -2 for the ends of the two lists, and Python reads index -1 as the last
element of an array: the last elements *are* the sentinels, and linking needs no branches.
Invariants: a row is in at most one list; the cell of a row in no list holds ABSENT; the hand of
a list stands on a row that has not moved since a walk passed it, or on the end.
"""

from array import array
from collections.abc import Callable, Iterator

ABSENT = -3
"""In `older[row]`: the row is in no list."""

_ENDS = 2
_FIRST_CELLS = 1024
_PASSES_A_VICTIM = 16


class Links:
    """The arrays that up to two lists share. 8 bytes a row, doubled on demand."""

    __slots__ = ("newer", "older")

    def __init__(self) -> None:
        self.older = array("i", [ABSENT]) * _FIRST_CELLS
        self.newer = array("i", [ABSENT]) * _FIRST_CELLS
        for end in range(-_ENDS, 0):
            self.older[end] = self.newer[end] = end

    @property
    def row_cells(self) -> int:
        """Rows below this number have a cell."""
        return len(self.older) - _ENDS

    def holds(self, row: int) -> bool:
        """Whether some list holds `row`."""
        return 0 <= row < self.row_cells and self.older[row] != ABSENT

    def grow(self, row: int) -> None:
        """Make room for `row`, in place: the lists keep their references."""
        missing = max(row + 1, 2 * self.row_cells) - self.row_cells
        for cells in (self.older, self.newer):
            ends = cells[-_ENDS:]
            cells[-_ENDS:] = array("i", [ABSENT]) * _ENDS
            cells.extend(array("i", [ABSENT]) * missing)
            cells[-_ENDS:] = ends


class RowList:
    """Rows from cold to hot. Everything is O(1), `first_cold` amortised. Not thread-safe."""

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
        """Cold to hot. The list must not change meanwhile."""
        row = self._newer[self._end]
        while row != self._end:
            yield row
            row = self._newer[row]

    def push(self, row: int) -> None:
        """Link a row that is in no list at the hot end."""
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
        """Take a row of this list out."""
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
        """The coldest row that `accept` takes, None if it takes none.

        Where long runs of cold rows are refused (the inner blocks of a long prefix, oldest
        first), asking all of them again for each victim would be quadratic. So a walk begins
        one row colder than the last find, where the parent of an evicted leaf stands, until
        the calls saved have paid for a walk from the cold end: `_PASSES_A_VICTIM` a call.
        Up to that many refused rows the answer is exact; beyond, a row that `accept` takes
        anew may wait for the next whole walk. None is only said after a whole walk.
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
