"""Batches through a tier: what is written is read back, and other bytes are an error."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvtier.testing.memory_tier import MemoryTier
from kvtier_bench.micro.parts import Tiered, each_part, memory


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_each_part_covers_all_rows_once(pool: ThreadPoolExecutor) -> None:
    parts: list[range] = []
    each_part(pool, 7, 3, parts.append)
    assert sorted(parts, key=lambda part: part.start) == [range(3), range(3, 6), range(6, 7)]


def test_replace_deletes_the_last_chain(pool: ThreadPoolExecutor) -> None:
    tier = MemoryTier()
    source, target = memory(10 * 4096, 4096)
    tiered = Tiered(tier, pool, source, target, 4)
    tiered.write()
    before = tiered.keys
    tiered.replace()
    assert not any(tier.contains(before))
    assert len(tier) == 10
    tiered.read()
    assert np.array_equal(source, target)


def test_verify_fails_for_a_tier_that_returns_other_bytes(pool: ThreadPoolExecutor) -> None:
    class Forgetful(MemoryTier):
        def read_into(self, moves):  # type: ignore[no-untyped-def]
            outcomes = super().read_into(moves)
            moves[-1].buffer[-1] ^= np.uint8(1)
            return outcomes

    source, target = memory(4 * 4096, 4096)
    Tiered(MemoryTier(), pool, source, target, 2).verify()
    with pytest.raises(AssertionError, match="other bytes"):
        Tiered(Forgetful(), pool, source, target, 2).verify()
