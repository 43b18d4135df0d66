"""Blocks that other hosts wrote to a shared tier are found without blocking and queried once."""

import numpy as np
import pytest

from kvtier.blocks.key import UNKNOWN_PARENT
from kvtier.index.local import Presence
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.testing.memory_tier import MemoryTier
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.transfer.base import Direction
from tests.cache.caches import DEADLINE_S, SLOT_BYTES, Rig, chain, key, parents, payload

RECHECK_S = 2.0
"""The default of `Capabilities.recheck_s`."""
UNKNOWN, BELOW, READY, ABSENT = (
    Presence.UNKNOWN,
    Presence.BELOW,
    Presence.READY,
    Presence.ABSENT,
)


@pytest.fixture
def place() -> MemoryTier:
    """The storage that other hosts write to."""
    return MemoryTier(64, shared=True)


@pytest.fixture
def tier(place: MemoryTier) -> FaultyTier:
    return FaultyTier(place)


@pytest.fixture
def rig(tier: FaultyTier):
    rig = Rig(16, [tier], delay_s=0.5)
    yield rig
    rig.close()


def elsewhere(place: MemoryTier, keys) -> None:
    """Write `keys` as another host does."""
    moves = []
    for each in keys:
        buffer = np.zeros(SLOT_BYTES, np.uint8)
        content = payload(each)
        buffer[: len(content)] = content
        moves.append(BlockMove(each, buffer))
    assert place.write_from(moves, parents(keys)) == [Outcome.DONE] * len(keys)


def presences(rig: Rig, keys, request: str = "r") -> list[Presence]:
    return [rig.cache.presence(request, each) for each in keys]


def test_discover_finds_blocks_of_another_host(rig: Rig, place: MemoryTier) -> None:
    keys = chain(6)
    elsewhere(place, keys[:4])
    assert presences(rig, keys) == [UNKNOWN] * 6
    rig.cache.discover("r", keys)
    rig.run_until_idle()
    assert presences(rig, keys) == [BELOW] * 4 + [ABSENT] * 2
    rig.cache.promote("r", keys[:4])
    rig.run_until_idle()
    assert presences(rig, keys) == [READY] * 4 + [ABSENT] * 2
    assert rig.load(keys[:4])
    assert rig.cache.counters.tiers[1].hit_blocks == 4


def test_discover_queries_once_for_two_requests(rig: Rig) -> None:
    keys = chain(3)
    rig.cache.discover("a", keys)
    rig.cache.discover("b", keys)
    assert rig.cache.queued_blocks(1, Direction.FIND) == 3
    rig.run_until_idle()
    assert presences(rig, keys, "b") == [ABSENT] * 3
    rig.cache.discover("b", keys)
    assert rig.cache.queued_blocks(1, Direction.FIND) == 0, "queried although known to be absent"


def test_absent_block_is_queried_again_after_recheck(rig: Rig, place: MemoryTier) -> None:
    keys = chain(2)
    rig.cache.discover("r", keys)
    rig.run_until_idle()
    elsewhere(place, keys)
    assert presences(rig, keys, "s") == [ABSENT] * 2
    rig.step(RECHECK_S)
    assert presences(rig, keys, "s") == [UNKNOWN] * 2
    rig.cache.discover("s", keys)
    rig.run_until_idle()
    assert presences(rig, keys, "s") == [BELOW] * 2


def test_discover_skips_blocks_of_this_process(rig: Rig) -> None:
    keys = chain(3)
    rig.save(keys)
    rig.run_until_idle()
    assert presences(rig, keys) == [READY] * 3
    rig.cache.discover("r", keys)
    assert rig.cache.queued_blocks(1, Direction.FIND) == 0


def test_unknown_block_is_absent_past_deadline(rig: Rig) -> None:
    keys = chain(2)
    rig.cache.discover("r", keys)
    rig.step(DEADLINE_S)
    rig.run_until_idle()
    rig.step(RECHECK_S)
    assert presences(rig, keys) == [ABSENT] * 2
    assert presences(rig, keys, "other") == [UNKNOWN] * 2


def test_failed_query_is_a_miss(rig: Rig, tier: FaultyTier) -> None:
    keys = chain(4)
    tier.inject(Fault.IO_ERROR)
    rig.cache.discover("r", keys)
    rig.run_until_idle()
    assert presences(rig, keys) == [ABSENT] * 4
    assert rig.cache.counters.tiers[1].fault_blocks == 4


def test_block_deleted_from_storage_is_a_miss(rig: Rig, place: MemoryTier) -> None:
    keys = chain(2)
    elsewhere(place, keys)
    rig.cache.discover("r", keys)
    rig.run_until_idle()
    place.delete(keys)
    rig.cache.promote("r", keys)
    rig.run_until_idle()
    assert presences(rig, keys) == [ABSENT] * 2, "a request reads a block at most once"
    assert rig.cache.counters.tiers[1].missing_blocks == 2


def test_full_shared_tier_deletes_nothing(place: MemoryTier) -> None:
    tier = MemoryTier(4, shared=True)
    rig = Rig(8, [tier])
    for number in range(4):
        rig.save([key(number)], [None])
        rig.run_until_idle()
    assert len(tier) == 4
    rig.save([key(10)], [None])
    rig.run_until_idle()
    assert len(tier) == 4, "the full tier rejects the block, and nothing is deleted for it"
    assert rig.cache.deleting_blocks(1) == 0
    rig.close()


def test_discover_indexes_at_most_capacity_blocks() -> None:
    place = MemoryTier(64, shared=True)
    elsewhere(place, chain(20))

    class Small(MemoryTier):
        def __init__(self) -> None:
            super().__init__(8, shared=True)

        def find(self, asked):
            return place.find(asked)

    rig = Rig(16, [Small()])
    rig.cache.discover("r", chain(20))
    rig.run_until_idle()
    assert presences(rig, chain(20))[:8] == [BELOW] * 8
    assert rig.cache.resident_blocks[1] == 8
    rig.close()


def test_discover_with_unknown_parent_finds_tail(rig: Rig, place: MemoryTier) -> None:
    elsewhere(place, [key(7)])
    rig.cache.discover("r", [key(7)], UNKNOWN_PARENT)
    rig.run_until_idle()
    assert presences(rig, [key(7)]) == [BELOW]
    assert rig.index.detached == 1


def test_reset_disables_shared_tier(rig: Rig, place: MemoryTier) -> None:
    keys = chain(4)
    elsewhere(place, keys)
    rig.cache.discover("r", keys)
    rig.cache.reset()
    rig.cache.finish_reset()
    rig.run_until_idle()
    assert presences(rig, keys, "s") == [ABSENT] * 4
    rig.save(chain(3, salt=1))
    rig.run_until_idle()
    assert len(place) == 4, "after a reset nothing is deleted from or added to a shared tier"
