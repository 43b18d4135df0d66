"""The shared tier in a bucket."""

from pathlib import Path
from typing import Final

from kvtier.blocks.checksum import checksum_for
from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.clock import Clock
from kvtier.tiers.objectstore.store import BucketStore
from kvtier.tiers.shared.tier import KNOWN_BLOCKS, StoreTier

OBJECT_BYTES: Final = 32 << 20
"""An object is written in one request, which has 3.5 s: at 10 MB/s this much goes through."""


class BucketTier(StoreTier):
    """A `StoreTier` on an `BucketStore`. Raises InvalidSettings naming the setting and the fix.

    An object holds `segment_blocks` blocks at most, and no more than OBJECT_BYTES where that is
    more than one block.
    """

    def __init__(
        self,
        url: str,
        layout: BlockLayout,
        space: KeySpace,
        *,
        segment_blocks: int = 1,
        is_prefix: bool = True,
        io_threads: int = 16,
        known_blocks: int = KNOWN_BLOCKS,
        recheck_s: float = 2.0,
        key_file: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        checksum = checksum_for(key_file, "objectstore.key_file")
        fitting_blocks = max(1, OBJECT_BYTES // layout.slot_bytes)
        store = BucketStore(url, clock=clock)
        store.check()
        super().__init__(
            "objectstore",
            store,
            layout,
            space,
            segment_blocks=min(segment_blocks, fitting_blocks),
            io_threads=io_threads,
            is_prefix=is_prefix,
            checksum=checksum,
            known_blocks=known_blocks,
            recheck_s=recheck_s,
            setting="objectstore.url",
            clock=clock,
        )
