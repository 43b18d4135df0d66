"""The shared tier in a folder keeps the contract of a tier that many use."""

from pathlib import Path

from kvtier.blocks.key import BlockKey
from kvtier.testing.tiers import SharedTierContract
from kvtier.tiers.base import Tier
from kvtier.tiers.shared.folder import FolderTier
from tests.tiers.shared.segments import SPACE, file_of, flip


class TestOneBlockAFile(SharedTierContract):
    segment_blocks = 1
    direct = "auto"

    def make_tier(self, folder: Path, capacity_blocks: int) -> Tier:
        return FolderTier(
            folder / "kv",
            self.layout,
            SPACE,
            segment_blocks=self.segment_blocks,
            known_blocks=capacity_blocks,
            direct=self.direct,
        )

    def corrupt(self, tier: Tier, folder: Path, block: BlockKey) -> None:
        flip(file_of(folder / "kv", block), 4096 + self.layout.block_bytes - 1)


class TestThroughThePageCache(TestOneBlockAFile):
    direct = "never"
