"""The shared tier in a bucket that every engine uses: `objectstore: s3://bucket/prefix`."""

from pathlib import Path

from kvtier.blocks.checksum import checksum_for
from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.clock import Clock
from kvtier.tiers.objectstore.store import ObjectStore
from kvtier.tiers.shared.tier import KNOWN_BLOCKS, StoreTier


class BucketTier(StoreTier):
    """A `StoreTier` on an `ObjectStore`. Raises InvalidSettings naming the setting and the fix."""

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
        store = ObjectStore(url, clock=clock)
        store.check()
        super().__init__(
            "objectstore",
            store,
            layout,
            space,
            segment_blocks=segment_blocks,
            io_threads=io_threads,
            is_prefix=is_prefix,
            checksum=checksum,
            known_blocks=known_blocks,
            recheck_s=recheck_s,
            setting="objectstore.url",
            clock=clock,
        )
