"""A doubly linked list of rows in two flat arrays: what the policies are built from.

Why: a list of node objects costs 100 bytes and more a row; two int32 arrays cost 8, and one
pair of arrays serves several lists at once, since a row is in one list at a time.
Trick: links use -1 for "the end", and Python reads index -1 as the last element of the array,
so the last element *is* the sentinel and linking needs no branches.
Invariant: a row is linked in at most one list; the cell of a row in no list holds ABSENT.
"""

from array import array
from collections.abc import Callable, Iterator

ABSENT = -2
"""In `older[row]`: the row is in no list."""

_FIRST_ROWS = 1024


class RowList:
    """Rows from cold to hot. O(1) everything but `first_cold`; 8 bytes a row; not thread-safe."""

    __slots__ = ("_newer", "_older", "size")

    def __init__(self) -> None:
        self._older = array("i", [ABSENT] * _FIRST_ROWS)
        self._newer = array("i", [ABSENT] * _FIRST_ROWS)
        self._older[-1] = self._newer[-1] = -1
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def __contains__(self, row: int) -> bool:
        return 0 <= row < len(self._older) - 1 and self._older[row] != ABSENT

    def __iter__(self) -> Iterator[int]:
        """Cold to hot. The list must not change meanwhile."""
        row = self._newer[-1]
        while row != -1:
            yield row
            row = self._newer[row]

    def push(self, row: int) -> None:
        """Link a row that is in no list at the hot end."""
        older = self._older
        newer = self._newer
        if row >= len(older) - 1:
            self._grow(row)
        assert older[row] == ABSENT, row
        hottest = older[-1]
        older[row] = hottest
        newer[row] = -1
        newer[hottest] = row
        older[-1] = row
        self.size += 1

    def unlink(self, row: int) -> None:
        """Take a linked row out."""
        older = self._older
        newer = self._newer
        colder = older[row]
        assert colder != ABSENT, row
        hotter = newer[row]
        newer[colder] = hotter
        older[hotter] = colder
        older[row] = ABSENT
        self.size -= 1

    def heat(self, row: int) -> None:
        """Move a linked row to the hot end."""
        older = self._older
        hottest = older[-1]
        if row == hottest:
            return
        newer = self._newer
        colder = older[row]
        assert colder != ABSENT, row
        hotter = newer[row]
        newer[colder] = hotter
        older[hotter] = colder
        older[row] = hottest
        newer[row] = -1
        newer[hottest] = row
        older[-1] = row

    def first_cold(self, accept: Callable[[int], bool]) -> int:
        """The coldest row that `accept` takes, -1 if none. One call of it a row passed."""
        newer = self._newer
        row = newer[-1]
        while row != -1 and not accept(row):
            row = newer[row]
        return row

    def _grow(self, row: int) -> None:
        for links in (self._older, self._newer):
            end = links[-1]
            links[-1] = ABSENT
            links.extend(array("i", [ABSENT]) * (max(row + 2, 2 * len(links)) - len(links)))
            links[-1] = end
