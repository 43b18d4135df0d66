"""The contract of an eviction policy: who leaves when a tier is full.

A policy orders `row` numbers: small dense integers that the index gives to the blocks it
holds and reuses after `remove`. Rows, not keys, so that a policy can live in flat arrays:
at ten million blocks a linked list of key objects alone would pass the memory budget.
A policy knows no reference counts and no prefix trees; `victim` takes a predicate.
"""

from collections.abc import Callable
from typing import Protocol

from kvtier.blocks.key import BlockKey


class EvictionPolicy(Protocol):
    """Not thread-safe: one caller, the cache. Nothing blocks, nothing raises in normal use."""

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
        """
        ...

    def __len__(self) -> int:
        """Rows resident."""
        ...
