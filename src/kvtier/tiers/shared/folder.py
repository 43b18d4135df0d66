"""The shared tier in a folder that every engine mounts: `shared: /mnt/kv`."""

from pathlib import Path

from kvtier.blocks.checksum import checksum_for
from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.clock import Clock
from kvtier.tiers.shared.files import StoreFiles
from kvtier.tiers.shared.opening import Direct
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.temporary import Durability
from kvtier.tiers.shared.tier import KNOWN_BLOCKS, StoreTier


class FolderTier(StoreTier):
    """A `StoreTier` on a `PosixStore`. Raises InvalidSettings naming the setting and the fix."""

    def __init__(
        self,
        folder: Path,
        layout: BlockLayout,
        space: KeySpace,
        *,
        segment_blocks: int = 1,
        is_prefix: bool = True,
        durability: Durability = "none",
        direct: Direct = "auto",
        io_threads: int = 8,
        known_blocks: int = KNOWN_BLOCKS,
        recheck_s: float = 2.0,
        key_file: Path | None = None,
        files: StoreFiles | None = None,
        clock: Clock | None = None,
    ) -> None:
        checksum = checksum_for(key_file)
        store = PosixStore(folder, durability=durability, direct=direct, files=files)
        super().__init__(
            "shared",
            store,
            layout,
            space,
            segment_blocks=segment_blocks,
            io_threads=io_threads,
            is_prefix=is_prefix,
            checksum=checksum,
            known_blocks=known_blocks,
            recheck_s=recheck_s,
            clock=clock,
        )
