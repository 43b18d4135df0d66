"""Write-through, driven through the cache: what a lower tier is told, and when."""

import pytest

from kvtier.blocks.key import UNKNOWN_PARENT
from kvtier.index.local import Presence
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.tiers.base import Outcome
from tests.cache.caches import Rig, chain, fill, is_right, key, memory_tier

BELOW = 1


def test_saved_blocks_come_to_lie_below() -> None:
    tier = memory_tier()
    rig = Rig(8, [tier])
    keys = chain(4)
    rig.save(keys)
    assert not any(tier.contains(keys))
    rig.settle()
    assert all(tier.contains(keys))
    assert [stored.parent for stored in tier.scan().blocks] == [None, *keys[:-1]]
    assert list(rig.cache.resident_blocks) == [4, 4]
    assert rig.cache.counters.tiers[BELOW].written_blocks == 4
    rig.close()


def test_a_parent_that_is_not_known_is_written_as_unknown() -> None:
    """Else it came back after a restart as the first block of a prefix."""
    tier = memory_tier()
    rig = Rig(8, [tier])
    rig.save([key(7)], [UNKNOWN_PARENT])
    rig.settle()
    assert [stored.parent for stored in tier.scan().blocks] == [UNKNOWN_PARENT]
    rig.close()


def test_blocks_under_way_stay_in_ram() -> None:
    rig = Rig(4, [memory_tier()], delay_s=1.0)
    rig.save(chain(2, salt=1))
    assert rig.cache.begin_save(chain(4, salt=2), [None] * 4) is None
    rig.settle()
    rig.save(chain(4, salt=2))
    rig.close()


def test_a_full_tier_lets_the_coldest_leaves_go() -> None:
    tier = memory_tier(4)
    rig = Rig(8, [tier])
    rig.save(chain(4, salt=1))
    rig.settle()
    rig.save(chain(2, salt=2))
    rig.settle()
    assert tier.contains(chain(4, salt=1)) == [True, True, False, False]
    assert all(tier.contains(chain(2, salt=2)))
    assert len(tier) == 4
    rig.close()


def test_admission_guards_the_tier() -> None:
    tier = memory_tier()
    rig = Rig(8, [tier], admission="second_touch")
    keys = chain(2)
    assert rig.cache.begin_save(keys, [None, keys[0]]).keys == []
    rig.save(keys)
    rig.settle()
    assert len(tier) == 0
    assert rig.cache.counters.tiers[BELOW].rejected_blocks == 2
    rig.close()


def test_back_pressure_drops_the_end_of_what_is_offered() -> None:
    """The beginning of a prefix is of use without its end, not the other way round."""
    tier = memory_tier()
    rig = Rig(16, [tier], delay_s=1.0, queue_blocks=3)
    keys = chain(5)
    rig.save(keys)
    assert rig.cache.counters.tiers[BELOW].dropped_blocks == 2
    rig.settle()
    assert tier.contains(keys) == [True, True, True, False, False]
    rig.close()


def test_ancestors_that_were_dropped_go_down_before_their_child() -> None:
    """Else the child could not be found after a restart, nor could RAM let go of its parent."""
    tier = memory_tier()
    rig = Rig(16, [tier], delay_s=1.0, queue_blocks=3)
    keys = chain(6)
    rig.save(keys[:5])
    rig.settle()
    assert tier.contains(keys[3:]) == [False] * 3
    rig.save(keys[5:], keys[4:5])
    rig.settle()
    assert tier.contains(keys) == [True] * 6
    assert [stored.key for stored in tier.scan().blocks] == keys
    rig.close()


def test_a_full_queue_is_not_overfilled_with_ancestors() -> None:
    tier = memory_tier()
    rig = Rig(16, [tier], delay_s=1.0, queue_blocks=2)
    keys = chain(7)
    rig.save(keys[:6])
    rig.settle()
    rig.save(keys[6:], keys[5:6])
    rig.settle()
    assert tier.contains(keys) == [True] * 4 + [False] * 3
    assert rig.cache.counters.tiers[BELOW].dropped_blocks == 4 + 1
    rig.close()


def test_at_most_half_of_ram_waits_to_be_written() -> None:
    rig = Rig(8, [memory_tier()], delay_s=1.0)
    rig.save(chain(8))
    assert rig.cache.counters.tiers[BELOW].dropped_blocks == 4
    rig.settle()
    rig.close()


def test_a_refused_write_is_counted_and_leaves_the_block_in_ram() -> None:
    tier = FaultyTier(memory_tier())
    rig = Rig(8, [tier])
    tier.inject(Fault.NO_SPACE)
    rig.save(chain(2))
    rig.settle()
    assert rig.cache.counters.tiers[BELOW].fault_blocks == 2
    assert rig.load(chain(2))
    rig.close()


def test_a_tier_full_of_blocks_that_are_needed_gives_way() -> None:
    tier = memory_tier(2)
    rig = Rig(8, [tier])
    keys = chain(2, salt=1)
    rig.save(keys)
    rig.settle()
    load = rig.cache.begin_load("r", keys)
    rig.save(chain(2, salt=2))
    rig.settle()
    assert not rig.cache.is_waiting
    assert all(tier.contains(keys))
    assert rig.cache.counters.tiers[BELOW].dropped_blocks == 2
    rig.cache.end_load(load)
    rig.close()


def test_a_delete_that_fails_is_tried_again_until_its_room_is_free() -> None:
    inner = memory_tier(2)
    tier = FaultyTier(inner)
    rig = Rig(8, [tier])
    rig.save(chain(2, salt=1))
    rig.settle()
    tier.inject(Fault.IO_ERROR)
    rig.save(chain(1, salt=2))
    rig.settle()
    counters = rig.cache.counters.tiers[BELOW]
    assert (counters.fault_blocks, counters.dropped_blocks) == (1, 1)
    assert len(inner) == 2
    rig.save(chain(1, salt=3))
    rig.settle()
    assert inner.contains([*chain(1, salt=3), chain(2, salt=1)[1]]) == [True, False]
    assert counters.fault_blocks == 1
    rig.close()


@pytest.mark.parametrize("seed", range(12))
def test_a_block_is_not_written_over_its_older_copy(seed: int) -> None:
    """Deletes and writes of one key may overtake each other; the tier must end up with it."""
    inner = memory_tier(2)
    rig = Rig(8, [inner], delay_s=1.0, seed=seed)
    old = chain(1, salt=1)
    rig.save(old)
    rig.settle()
    rig.save(chain(2, salt=2))
    # The old block is leaving below; it leaves RAM too, and is saved anew at once.
    rig.residency.evict(0, 9, lambda row: rig.index.keys[row] == old[0])
    rig.save(old)
    rig.settle()
    held = [block for block, row in rig.index.rows.items() if rig.index.held[row] & 2]
    assert all(inner.contains(held))
    rig.close()


@pytest.mark.parametrize("seed", range(12))
def test_after_clear_the_tier_has_the_new_bytes(seed: int) -> None:
    """Writes from before a clear are still under way when the same keys are saved again."""
    tier = memory_tier()
    rig = Rig(12, [tier], delay_s=1.0, seed=seed)
    keys = chain(3)
    rig.save(keys)
    rig.step(0.5)
    rig.cache.reset()
    save = rig.cache.begin_save(keys, [None, *keys[:-1]])
    fill(rig.cache, save, epoch=1)
    rig.cache.end_save(save)
    rig.settle()
    assert all(tier.contains(keys))
    rig.residency.evict(0, 3, rig.index.evictable(0))
    rig.cache.promote("r", keys)
    rig.settle()
    load = rig.cache.begin_load("r", keys)
    assert all(is_right(rig.cache, *each, epoch=1) for each in zip(keys, load.slots, strict=True))
    rig.cache.end_load(load)
    rig.close()


def test_blocks_written_after_clear_forgot_them_are_deleted() -> None:
    tier = memory_tier()
    rig = Rig(8, [tier], delay_s=1.0)
    rig.save(chain(3))
    rig.cache.reset()
    rig.settle()
    assert len(tier) == 0
    assert rig.cache.arena.free == 8
    assert rig.cache.presence("r", chain(3)[0]) is Presence.ABSENT
    rig.close()


def test_the_tier_stays_within_its_capacity_all_along() -> None:
    tier = memory_tier(5)
    refusals = []

    class Watched(FaultyTier):
        def write_from(self, moves, parents):
            outcomes = super().write_from(moves, parents)
            refusals.extend(out for out in outcomes if out is not Outcome.DONE)
            return outcomes

    rig = Rig(8, [Watched(tier)], delay_s=0.5)
    for salt in range(30):
        if rig.cache.begin_save([], []) is not None:
            save = rig.cache.begin_save(chain(3, salt), [None, *chain(2, salt)])
            if save is not None:
                fill(rig.cache, save)
                rig.cache.end_save(save)
        rig.step(0.3)
    rig.settle()
    assert not refusals
    assert rig.cache.counters.tiers[BELOW].evicted_blocks > 0
    rig.close()
