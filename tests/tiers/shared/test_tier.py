"""The shared tier in a folder, and over any store."""

from pathlib import Path

import pytest

from kvtier.blocks.key import BlockKey
from kvtier.testing.memory_store import MemoryStore
from kvtier.testing.tiers import SharedTierContract, key
from kvtier.tiers.base import Outcome, Tier
from kvtier.tiers.shared.tier import FolderTier, StoreTier
from tests.tiers.shared.segments import (
    DONE,
    LAYOUT,
    MISSING,
    SPACE,
    Tiers,
    file_of,
    flip,
    keys,
    read,
    write,
)


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


class RefusingStore(MemoryStore):
    """A store that raises `error` while it is set."""

    error: OSError | None = None

    def publish(self, name, parts):
        self._check()
        return super().publish(name, parts)

    def read(self, name, offset, buffers):
        self._check()
        return super().read(name, offset, buffers)

    def put(self, name, data):
        self._check()
        return super().put(name, data)

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


def test_refusing_store_is_logged_once_and_recovers(caplog: pytest.LogCaptureFixture) -> None:
    store = RefusingStore()
    tier = StoreTier("shared", store, LAYOUT, SPACE, segment_blocks=2, io_threads=1)
    write(tier, keys(4))
    store.error = OSError(5, "Input/output error")
    for _ in range(3):
        assert read(tier, keys(4)) == [Outcome.FAILED] * 4
        assert write(tier, keys(2, 50)) == [Outcome.FAILED] * 2
        assert tier.find(keys(4, 70)) == [Outcome.FAILED] * 4
    assert len(caplog.messages) == 3, "one line for each kind of call"
    store.error = None
    assert read(tier, keys(4)) == [DONE] * 4
    assert tier.find(keys(6)) == [DONE] * 4 + [MISSING] * 2


def test_find_without_prefix_chains_checks_every_block(tiers: Tiers) -> None:
    tier = tiers.open(1, is_prefix=False)
    write(tier, [key(3)], parent=key(2))
    assert tiers.open(1, is_prefix=False).find(keys(5)) == [
        MISSING,
        MISSING,
        MISSING,
        DONE,
        MISSING,
    ]
