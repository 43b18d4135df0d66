"""An eviction policy of your own: one class, proven by the suite that kvtier ships.

Put it into a package of yours with an entry point, and `ram: {eviction: first_in}` finds it:

    [project.entry-points."kvtier.eviction"]
    first_in = "my_package.my_policy:FirstIn"

Prove it with `.venv/bin/python -m pytest examples/my_policy.py`.
"""

from collections.abc import Callable

from kvtier.blocks.key import BlockKey
from kvtier.eviction.base import EvictionPolicy
from kvtier.eviction.rows import Links, RowList
from kvtier.testing.eviction import EvictionContract


class FirstIn:
    """First in, first out: the plainest policy there is. Uses do not count.

    `RowList` is a list in flat arrays: eight bytes a row, and a walk for a victim that does
    not start over each time.
    """

    def __init__(self, *, capacity_rows: int | None = None) -> None:
        self._rows = RowList(Links())

    def insert(self, row: int, key: BlockKey) -> None:
        """To the back of the queue."""
        self._rows.push(row)

    def access(self, row: int) -> None:
        """Nothing: that is the policy."""

    def remove(self, row: int) -> None:
        """Out of the queue."""
        self._rows.unlink(row)

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """The oldest row that may go."""
        row = self._rows.first_cold(evictable)
        if row is not None:
            self._rows.unlink(row)
        return row

    def __len__(self) -> int:
        """Rows resident."""
        return self._rows.size


class TestFirstIn(EvictionContract):
    """The whole contract: nothing lost, nothing evicted that must stay."""

    def make_policy(self, capacity_rows: int | None = None) -> EvictionPolicy:
        """What the suite tests."""
        return FirstIn(capacity_rows=capacity_rows)
