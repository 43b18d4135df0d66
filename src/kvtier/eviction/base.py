"""The contract of an eviction policy: who leaves when a tier is full.

A policy orders `row` numbers: small dense integers that the index gives to the blocks it
holds and reuses after `remove`. Rows, not keys, so that a policy can live in flat arrays:
at ten million blocks a linked list of key objects alone would pass the memory budget.
A policy knows no reference counts and no prefix trees; `victim` takes a predicate.

A module of this room ends with `PLUGIN = <Class>`. The constructor takes one optional keyword,
`capacity_rows: int | None = None`: how many rows are resident when the tier is full. With None
a policy takes the rows resident at each `victim` for its capacity, since the cache asks for a
victim only when the tier is full; the number may then follow a tier that grows.
"""

from collections.abc import Callable
from typing import Protocol

from kvtier.blocks.key import BlockKey


class EvictionPolicy(Protocol):
    """Not thread-safe: one caller, the cache. Nothing blocks, nothing raises in normal use.

    The caller promises: `insert` only of rows that are not resident, `access` and `remove` only
    of rows that are. A broken promise is a bug and fails an assertion. A policy costs at most
    16 bytes a row beside its ghosts, and well under a microsecond an operation.
    """

    def insert(self, row: int, key: BlockKey) -> None:
        """`row` is now resident and most recent. `key` serves ghost lists only."""
        ...

    def access(self, row: int) -> None:
        """`row` was used. O(1)."""
        ...

    def remove(self, row: int) -> None:
        """`row` left for a reason other than `victim` (corrupt, forgotten). O(1)."""
        ...

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """Choose, remove and return the row to evict; None if no row satisfies `evictable`.

        Rows that are skipped keep their place: pinning must not reorder a policy.
        `evictable` must not change the policy. It is called once for each row passed: keep it to
        an array read or two. Policies bound the rows passed per victim on average, so that a
        long refused prefix does not make eviction quadratic; past that bound a row that has
        just become evictable may wait its turn. O(rows) when there is no victim at all.
        """
        ...

    def __len__(self) -> int:
        """Rows resident."""
        ...
