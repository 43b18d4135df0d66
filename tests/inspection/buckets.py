"""Stores other than folders, with real segments, for tests of inspection."""

from collections.abc import Sequence

from kvtier.blocks.key import BlockKey, KeySpace
from kvtier.inspection.store_view import StoreView
from kvtier.testing.memory_store import MemoryStore
from kvtier.tiers.base import Outcome
from kvtier.tiers.shared.format import segment_name, space_folder
from kvtier.tiers.shared.store import Store
from kvtier.tiers.shared.tier import StoreTier
from tests.inspection.stores import SPACE
from tests.tiers.shared.segments import LAYOUT, read, write

PLACE = "memory://kv"


class UnclosedStore:
    """A wrapper that does not close its store, because the test continues to use it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def close(self) -> None:
        """Do nothing."""


def fill(
    store: Store,
    blocks: Sequence[BlockKey],
    space: KeySpace = SPACE,
    segment_blocks: int = 4,
    reads: int = 0,
) -> str:
    """Write a chain, have `reads` engines read it in turn, and return the key space's folder."""
    for number in range(1 + reads):
        borrowed: Store = UnclosedStore(store)  # type: ignore[assignment]
        tier = StoreTier(
            "test", borrowed, LAYOUT, space, segment_blocks=segment_blocks, io_threads=1
        )
        done = read(tier, list(blocks)) if number else write(tier, list(blocks))
        assert done == [Outcome.DONE] * len(blocks)
        tier.close()
    return space_folder(space)


def name_of(block: BlockKey) -> str:
    """Return the name of the segment that begins with the block."""
    return f"{space_folder(SPACE)}/{segment_name(block)}"


def spoil(store: MemoryStore, block: BlockKey, at: int) -> None:
    store.raw(name_of(block))[at] ^= 1


def view_of(store: MemoryStore) -> StoreView:
    return StoreView(store, PLACE)
