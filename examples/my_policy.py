"""An eviction policy of your own: one class, tested by the contract suite that kvtier ships.

Put it into a package with an entry point, and the setting `ram: {eviction: first_in}` finds it:

    [project.entry-points."kvtier.eviction"]
    first_in = "my_package.my_policy:FirstIn"

Test it with `.venv/bin/python -m pytest examples/my_policy.py`.
"""

from collections.abc import Callable

from kvtier.blocks.key import BlockKey
from kvtier.eviction.base import EvictionPolicy
from kvtier.eviction.rows import Links, RowList
from kvtier.testing.eviction import EvictionContract


class FirstIn:
    """First in, first out: the simplest policy, which ignores accesses.

    `RowList` is a linked list in flat arrays with eight bytes a row. Its search for a victim does
    not start again from the oldest row every time.
    """

    def __init__(self, *, capacity_rows: int | None = None) -> None:
        self._rows = RowList(Links())

    def insert(self, row: int, key: BlockKey) -> None:
        """Append a row to the queue."""
        self._rows.push(row)

    def access(self, row: int) -> None:
        """Do nothing: the policy ignores accesses."""

    def remove(self, row: int) -> None:
        """Remove a row from the queue."""
        self._rows.unlink(row)

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """Remove and return the oldest evictable row; None if there is none."""
        row = self._rows.first_cold(evictable)
        if row is not None:
            self._rows.unlink(row)
        return row

    def __len__(self) -> int:
        """Return the number of resident rows."""
        return self._rows.size


class TestFirstIn(EvictionContract):
    """The contract suite for `FirstIn`."""

    def make_policy(self, capacity_rows: int | None = None) -> EvictionPolicy:
        """Return a policy for the suite to test."""
        return FirstIn(capacity_rows=capacity_rows)
