from pathlib import Path

import numpy as np
import pytest

from kvtier.testing.memory_tier import MemoryTier
from kvtier.testing.tiers import TierContract, key
from kvtier.tiers.base import BlockMove, Tier


class TestMemoryTierContract(TierContract):
    def make_tier(self, folder: Path, capacity_blocks: int) -> Tier:
        return MemoryTier(capacity_blocks)


def test_raw_bytes_can_be_changed_behind_the_tier() -> None:
    tier = MemoryTier(4)
    buffer = np.zeros(16, np.uint8)
    tier.write_from([BlockMove(key(1), buffer)], [None])
    tier.raw(key(1))[3] ^= 1
    tier.read_into([BlockMove(key(1), buffer)])
    assert buffer.tolist() == [0, 0, 0, 1] + [0] * 12
    with pytest.raises(KeyError):
        tier.raw(key(2))
