"""Write-through to lower tiers, driven through the cache."""

from kvtier.blocks.key import UNKNOWN_PARENT
from kvtier.index.local import Presence
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.tiers.base import Outcome
from tests.cache.caches import Rig, chain, fill, has_right_bytes, key, memory_tier
from tests.cases import case

BELOW = 1


def test_saved_blocks_are_written_to_lower_tier() -> None:
    tier = memory_tier()
    rig = Rig(8, [tier])
    keys = chain(4)
    rig.save(keys)
    assert not any(tier.contains(keys))
    rig.run_until_idle()
    assert all(tier.contains(keys))
    assert [stored.parent for stored in tier.scan().blocks] == [None, *keys[:-1]]
    assert list(rig.cache.resident_blocks) == [4, 4]
    assert rig.cache.counters.tiers[BELOW].written_blocks == 4
    rig.close()


def test_unknown_parent_is_written_as_unknown() -> None:
    """Otherwise the block would be the first block of a prefix after a restart."""
    tier = memory_tier()
    rig = Rig(8, [tier])
    rig.save([key(7)], [UNKNOWN_PARENT])
    rig.run_until_idle()
    assert [stored.parent for stored in tier.scan().blocks] == [UNKNOWN_PARENT]
    rig.close()


def test_block_being_written_is_not_evicted_from_ram() -> None:
    rig = Rig(4, [memory_tier()], delay_s=1.0)
    rig.save(chain(2, salt=1))
    assert rig.cache.begin_save(chain(4, salt=2), [None] * 4) is None
    rig.run_until_idle()
    rig.save(chain(4, salt=2))
    rig.close()


def test_full_tier_evicts_coldest_leaves() -> None:
    tier = memory_tier(4)
    rig = Rig(8, [tier])
    rig.save(chain(4, salt=1))
    rig.run_until_idle()
    rig.save(chain(2, salt=2))
    rig.run_until_idle()
    assert tier.contains(chain(4, salt=1)) == [True, True, False, False]
    assert all(tier.contains(chain(2, salt=2)))
    assert len(tier) == 4
    rig.close()


def test_tier_admission_rejects_blocks() -> None:
    tier = memory_tier()
    rig = Rig(8, [tier], admission="second_touch")
    keys = chain(2)
    assert rig.cache.begin_save(keys, [None, keys[0]]).keys == []
    rig.save(keys)
    rig.run_until_idle()
    assert len(tier) == 0
    assert rig.cache.counters.tiers[BELOW].rejected_blocks == 2
    rig.close()


def test_back_pressure_drops_end_of_offered_chain() -> None:
    """The beginning of a prefix is useful without its end, but not the other way round."""
    tier = memory_tier()
    rig = Rig(16, [tier], delay_s=1.0, queue_blocks=3)
    keys = chain(5)
    rig.save(keys)
    assert rig.cache.counters.tiers[BELOW].dropped_blocks == 2
    rig.run_until_idle()
    assert tier.contains(keys) == [True, True, True, False, False]
    rig.close()


def test_dropped_ancestors_are_written_before_child() -> None:
    """Otherwise the child could not be found after a restart, nor its parent leave RAM."""
    tier = memory_tier()
    rig = Rig(16, [tier], delay_s=1.0, queue_blocks=3)
    keys = chain(6)
    rig.save(keys[:5])
    rig.run_until_idle()
    assert tier.contains(keys[3:]) == [False] * 3
    rig.save(keys[5:], keys[4:5])
    rig.run_until_idle()
    assert tier.contains(keys) == [True] * 6
    assert [stored.key for stored in tier.scan().blocks] == keys
    rig.close()


def test_dropped_ancestors_respect_queue_limit() -> None:
    tier = memory_tier()
    rig = Rig(16, [tier], delay_s=1.0, queue_blocks=2)
    keys = chain(7)
    rig.save(keys[:6])
    rig.run_until_idle()
    rig.save(keys[6:], keys[5:6])
    rig.run_until_idle()
    assert tier.contains(keys) == [True] * 4 + [False] * 3
    assert rig.cache.counters.tiers[BELOW].dropped_blocks == 4 + 1
    rig.close()


def test_waiting_writes_pin_at_most_half_of_ram() -> None:
    rig = Rig(8, [memory_tier()], delay_s=1.0)
    rig.save(chain(8))
    assert rig.cache.counters.tiers[BELOW].dropped_blocks == 4
    rig.run_until_idle()
    rig.close()


def test_failed_write_is_counted_and_block_stays_in_ram() -> None:
    tier = FaultyTier(memory_tier())
    rig = Rig(8, [tier])
    tier.inject(Fault.NO_SPACE)
    rig.save(chain(2))
    rig.run_until_idle()
    assert rig.cache.counters.tiers[BELOW].fault_blocks == 2
    assert rig.load(chain(2))
    rig.close()


def test_tier_without_evictable_blocks_drops_writes() -> None:
    tier = memory_tier(2)
    rig = Rig(8, [tier])
    keys = chain(2, salt=1)
    rig.save(keys)
    rig.run_until_idle()
    load = rig.cache.begin_load("r", keys)
    rig.save(chain(2, salt=2))
    rig.run_until_idle()
    assert not rig.cache.is_waiting
    assert all(tier.contains(keys))
    assert rig.cache.counters.tiers[BELOW].dropped_blocks == 2
    rig.cache.end_load(load)
    rig.close()


def test_failed_delete_is_retried_until_room_is_free() -> None:
    inner = memory_tier(2)
    tier = FaultyTier(inner)
    rig = Rig(8, [tier])
    rig.save(chain(2, salt=1))
    rig.run_until_idle()
    tier.inject(Fault.IO_ERROR)
    rig.save(chain(1, salt=2))
    rig.run_until_idle()
    counters = rig.cache.counters.tiers[BELOW]
    assert (counters.fault_blocks, counters.dropped_blocks) == (1, 1)
    assert len(inner) == 2
    rig.save(chain(1, salt=3))
    rig.run_until_idle()
    assert inner.contains([*chain(1, salt=3), chain(2, salt=1)[1]]) == [True, False]
    assert counters.fault_blocks == 1
    rig.close()


def test_block_is_not_written_before_older_copy_is_deleted() -> None:
    """Deletions and writes of one key may overtake each other; the tier must keep the block."""
    for seed in range(12):
        with case(f"seed {seed}"):
            check_rewrite(seed)


def check_rewrite(seed: int) -> None:
    inner = memory_tier(2)
    rig = Rig(8, [inner], delay_s=1.0, seed=seed)
    old = chain(1, salt=1)
    rig.save(old)
    rig.run_until_idle()
    rig.save(chain(2, salt=2))
    # The old block is being deleted below. It is evicted from RAM, too, and saved again at once.
    rig.residency.evict(0, 9, lambda row: rig.index.keys[row] == old[0])
    rig.save(old)
    rig.run_until_idle()
    held = [block for block, row in rig.index.rows.items() if rig.index.held[row] & 2]
    assert all(inner.contains(held))
    rig.close()


def test_reset_during_write_leaves_new_bytes_in_tier() -> None:
    """Writes from before a reset are still in progress when the same keys are saved again."""
    for seed in range(12):
        with case(f"seed {seed}"):
            check_reset(seed)


def check_reset(seed: int) -> None:
    tier = memory_tier()
    rig = Rig(12, [tier], delay_s=1.0, seed=seed)
    keys = chain(3)
    rig.save(keys)
    rig.step(0.5)
    rig.cache.reset()
    save = rig.cache.begin_save(keys, [None, *keys[:-1]])
    fill(rig.cache, save, epoch=1)
    rig.cache.end_save(save)
    rig.run_until_idle()
    assert all(tier.contains(keys))
    rig.residency.evict(0, 3, rig.index.evictable(0))
    rig.cache.promote("r", keys)
    rig.run_until_idle()
    load = rig.cache.begin_load("r", keys)
    assert all(
        has_right_bytes(rig.cache, *each, epoch=1) for each in zip(keys, load.slots, strict=True)
    )
    rig.cache.end_load(load)
    rig.close()


def test_write_that_ends_after_reset_is_deleted() -> None:
    tier = memory_tier()
    rig = Rig(8, [tier], delay_s=1.0)
    rig.save(chain(3))
    rig.cache.reset()
    rig.run_until_idle()
    assert len(tier) == 0
    assert rig.cache.arena.free == 8
    assert rig.cache.presence("r", chain(3)[0]) is Presence.ABSENT
    rig.close()


def test_writes_never_exceed_tier_capacity() -> None:
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
    rig.run_until_idle()
    assert not refusals
    assert rig.cache.counters.tiers[BELOW].evicted_blocks > 0
    rig.close()
