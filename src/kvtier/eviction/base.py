"""The contract of an eviction policy, which chooses the block that leaves a full tier.

A policy orders rows: small dense integers that the index assigns to blocks and reuses after
their removal. Rows instead of keys allow a policy to use flat arrays: for ten million blocks, a
linked list of key objects alone would exceed the memory budget. A policy knows nothing of pins
and prefixes; the predicate given to `victim` does.

A policy's module ends with `PLUGIN = <Class>`. The constructor takes one optional keyword,
`capacity_rows: int | None = None`: the number of rows resident when the tier is full. With None
a policy uses the number of rows resident at each `victim` as its capacity, since the cache
evicts only when the tier is full.
"""

from collections.abc import Callable
from typing import Protocol

from kvtier.blocks.key import BlockKey


class EvictionPolicy(Protocol):
    """An order of the rows of one tier, from which victims are chosen.

    Not thread-safe: the cache is the only caller. No method blocks or raises in normal use.
    `insert` takes only rows that are not resident, `access` and `remove` only rows that are;
    anything else is a bug and fails an assertion. A policy uses at most 16 bytes per row beside
    its ghosts, and well under a microsecond per operation.
    """

    def insert(self, row: int, key: BlockKey) -> None:
        """Add `row` as the most recent one. `key` is for ghost lists only."""
        ...

    def access(self, row: int) -> None:
        """Record a use of `row`. O(1)."""
        ...

    def remove(self, row: int) -> None:
        """Remove `row` for a reason other than eviction (corrupt, missing, reset). O(1)."""
        ...

    def victim(self, evictable: Callable[[int], bool]) -> int | None:
        """Choose, remove and return the row to evict; None if no row satisfies `evictable`.

        Rows that are skipped keep their place, so that pins do not change the order.
        `evictable` must not change the policy; it is called for each row that is visited, so it
        should cost no more than an array access or two. Policies bound the average number of
        rows visited per victim, so that a long prefix of non-evictable rows does not make
        eviction quadratic. Beyond that bound, a row that has just become evictable may be
        found only by a later call. O(rows) if there is no victim at all.
        """
        ...

    def __len__(self) -> int:
        """Return the number of resident rows."""
        ...
