"""The shared tier in a bucket that every engine uses: `objectstore: s3://bucket/prefix`."""

from pathlib import Path
from typing import Final

from kvtier.blocks.checksum import checksum_for
from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.clock import Clock
from kvtier.tiers.objectstore.store import BucketStore
from kvtier.tiers.shared.tier import KNOWN_BLOCKS, StoreTier

OBJECT_BYTES: Final = 32 << 20
"""The largest object. It is written by one request, which has 3.5 s: enough at 10 MB/s."""


class BucketTier(StoreTier):
    """A `StoreTier` on a `BucketStore`. Raises InvalidSettings naming the setting and the fix.

    An object holds at most `segment_blocks` blocks, and at most OBJECT_BYTES unless a single block
    is larger.
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
