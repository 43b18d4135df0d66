"""Tiers on segments in a folder, and access to their files behind the tiers' back."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from kvtier.blocks.key import BlockKey
from kvtier.testing.samples import sample_space
from kvtier.testing.tiers import SharedTierContract, key, pattern
from kvtier.tiers.base import BlockMove, Outcome, Tier
from kvtier.tiers.shared.tier import FolderTier

DONE, MISSING, CORRUPT, FAILED = (
    Outcome.DONE,
    Outcome.MISSING,
    Outcome.CORRUPT,
    Outcome.FAILED,
)
SPACE = sample_space()
LAYOUT = SharedTierContract.layout
SLOT_BYTES = LAYOUT.slot_bytes


class Tiers:
    """The tiers that a test opens in one folder, and closes together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "kv"
        self._opened = ExitStack()

    def open(self, blocks: int = 4, **options) -> FolderTier:
        """Open another engine's tier with at most `blocks` blocks a file."""
        tier = FolderTier(self.folder, LAYOUT, SPACE, segment_blocks=blocks, **options)
        self._opened.callback(tier.close)
        return tier

    def close(self) -> None:
        self._opened.close()

    def segments(self) -> list[Path]:
        return sorted(self.folder.glob("*/blocks/*/*.kvt"))

    def quarantined(self) -> list[Path]:
        return sorted(self.folder.glob("*/quarantine/*"))

    def file_of(self, block: BlockKey) -> Path:
        return file_of(self.folder, block)


def keys(count: int, first: int = 0) -> list[BlockKey]:
    return [key(first + number) for number in range(count)]


def moves(blocks: list[BlockKey]) -> list[BlockMove]:
    return [BlockMove(each, pattern(each, LAYOUT)) for each in blocks]


def write(tier: Tier, blocks: list[BlockKey], parent: BlockKey | None = None) -> list[Outcome]:
    return tier.write_from(moves(blocks), [parent, *blocks[:-1]])


def read(tier: Tier, blocks: list[BlockKey]) -> list[Outcome]:
    into = [BlockMove(each, np.zeros(SLOT_BYTES, np.uint8)) for each in blocks]
    outcomes = tier.read_into(into)
    for move, outcome in zip(into, outcomes, strict=True):
        payload = pattern(move.key, LAYOUT)[: LAYOUT.block_bytes]
        right = np.array_equal(move.buffer[: LAYOUT.block_bytes], payload)
        assert right or outcome is not DONE, "wrong bytes are DONE"
    return outcomes


def file_of(folder: Path, block: BlockKey) -> Path:
    (found,) = folder.glob(f"*/blocks/*/{block.hex()}.kvt")
    return found


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
