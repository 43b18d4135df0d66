"""Promotion, driven through the cache: shared reads, deadlines, pins, and failing tiers."""

import pytest

from kvtier.index.local import Presence
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.transfer.base import Direction
from tests.cache.caches import DEADLINE_S, Rig, chain, memory_tier

BELOW = 1


def below_only(rig: Rig, keys) -> None:
    """Save `keys` to the lower tier and evict them from RAM."""
    rig.save(keys)
    rig.run_until_idle()
    rig.residency.evict(0, len(keys), lambda row: rig.index.keys[row] in keys)
    assert all(rig.cache.presence("other", each) is Presence.BELOW for each in keys)


def presences(rig: Rig, keys, request: str = "r") -> list[Presence]:
    return [rig.cache.presence(request, each) for each in keys]


@pytest.fixture
def tier() -> FaultyTier:
    return FaultyTier(memory_tier())


@pytest.fixture
def rig(tier: FaultyTier):
    rig = Rig(8, [tier], delay_s=1.0)
    yield rig
    rig.close()


def test_promoted_blocks_count_as_hits_of_their_tier(rig: Rig) -> None:
    keys = chain(3)
    below_only(rig, keys)
    rig.cache.promote("r", keys)
    assert presences(rig, keys) == [Presence.PENDING] * 3
    assert not rig.load(keys)
    rig.run_until_idle()
    assert presences(rig, keys) == [Presence.READY] * 3
    assert rig.cache.origin("r", keys[0]) == BELOW
    assert rig.load(keys)
    assert [tier.hit_blocks for tier in rig.cache.counters.tiers] == [0, 3]
    assert not any(rig.index.pins)


def test_second_request_shares_the_read(rig: Rig) -> None:
    keys = chain(2)
    below_only(rig, keys)
    rig.cache.promote("a", keys)
    rig.cache.promote("b", keys)
    assert rig.cache.queued_blocks(BELOW, Direction.READ) == 2
    rig.run_until_idle()
    assert rig.load(keys, "b")
    assert rig.load(keys, "a")


def test_release_request_cancels_its_reads(rig: Rig) -> None:
    keys = chain(2)
    below_only(rig, keys)
    rig.cache.promote("a", keys)
    rig.cache.release_request("a")
    rig.run_until_idle()
    assert rig.cache.counters.tiers[BELOW].read_blocks == 0
    assert presences(rig, keys) == [Presence.BELOW] * 2
    rig.cache.promote("a", keys)
    rig.run_until_idle()
    assert rig.load(keys, "a")


def test_release_request_keeps_reads_that_others_wait_for(rig: Rig) -> None:
    keys = chain(2)
    below_only(rig, keys)
    rig.cache.promote("a", keys)
    rig.cache.promote("b", keys)
    rig.cache.release_request("a")
    rig.run_until_idle()
    assert rig.load(keys, "b")


def test_promote_after_shared_read_was_cancelled_reads_again(rig: Rig) -> None:
    keys = chain(2)
    below_only(rig, keys)
    rig.cache.promote("a", keys)
    rig.cache.release_request("a")
    rig.cache.promote("b", keys)
    rig.run_until_idle()
    assert presences(rig, keys, "b") == [Presence.BELOW] * 2
    rig.cache.promote("b", [*keys, *keys])
    rig.run_until_idle()
    assert rig.load(keys, "b")
    assert rig.cache.counters.tiers[BELOW].read_blocks == 2


@pytest.mark.parametrize("fault", [Fault.IO_ERROR, Fault.BIT_FLIP, Fault.FOLDER_REMOVED])
def test_failed_read_is_absent_for_request_and_not_retried(
    rig: Rig, tier: FaultyTier, fault: Fault
) -> None:
    keys = chain(1)
    below_only(rig, keys)
    tier.inject(fault)
    rig.cache.promote("r", keys)
    rig.run_until_idle()
    assert presences(rig, keys) == [Presence.ABSENT]
    rig.cache.promote("r", keys)
    assert rig.cache.queued_blocks(BELOW, Direction.READ) == 0
    rig.cache.release_request("r")
    counters = rig.cache.counters.tiers[BELOW]
    assert (
        counters.fault_blocks,
        counters.corrupt_blocks,
        counters.missing_blocks,
    ) == {
        Fault.IO_ERROR: (1, 0, 0),
        Fault.BIT_FLIP: (0, 1, 0),
        Fault.FOLDER_REMOVED: (0, 0, 1),
    }[fault]
    # After an I/O error another request may try again; a lost block has left the index.
    is_below = fault is Fault.IO_ERROR
    assert (presences(rig, keys, "other") == [Presence.BELOW]) is is_below


def test_request_past_deadline_gets_misses_and_reads_nothing(rig: Rig) -> None:
    keys, later = chain(2, salt=1), chain(2, salt=2)
    below_only(rig, keys)
    below_only(rig, later)
    rig.cache.promote("r", keys)
    rig.clock.advance(DEADLINE_S)
    rig.cache._now_s = rig.clock.now_s()
    assert presences(rig, keys) == [Presence.ABSENT] * 2
    assert presences(rig, keys) == [Presence.ABSENT] * 2
    assert rig.cache.counters.expired_promotions == 1
    rig.cache.promote("r", later)
    assert rig.cache.queued_blocks(BELOW, Direction.READ) == 2
    # Blocks that arrive late are used all the same.
    rig.run_until_idle()
    assert presences(rig, keys) == [Presence.READY] * 2
    rig.cache.release_request("r")
    assert not any(rig.index.pins)


def test_reset_does_not_extend_deadline(rig: Rig) -> None:
    keys = chain(2)
    below_only(rig, keys)
    rig.cache.promote("r", keys)
    rig.cache.reset()
    rig.step(DEADLINE_S)
    save = rig.cache.begin_save(keys, [None, keys[0]])
    assert presences(rig, keys) == [Presence.ABSENT] * 2
    rig.cache.release_request("r")
    assert presences(rig, keys) == [Presence.PENDING] * 2
    rig.cache.end_save(save)


def test_request_pins_at_most_half_of_ram(rig: Rig) -> None:
    first, second = chain(3, salt=1), chain(3, salt=2)
    below_only(rig, first)
    below_only(rig, second)
    rig.cache.promote("r", [*first, *second])
    rig.run_until_idle()
    assert presences(rig, [*first, *second]) == [Presence.READY] * 4 + [Presence.ABSENT] * 2
    rig.cache.promote("s", second)
    assert presences(rig, second, "s")[1:] == [Presence.BELOW] * 2
    assert rig.load([*first, second[0]])
    rig.cache.promote("s", second)
    rig.run_until_idle()
    assert rig.load(second, "s")


def test_request_waits_for_pins_of_requests_that_can_proceed(rig: Rig) -> None:
    first, second = chain(3, salt=1), chain(3, salt=2)
    below_only(rig, first)
    below_only(rig, second)
    rig.cache.promote("a", first)
    rig.cache.promote("b", second)
    rig.run_until_idle()
    assert presences(rig, second, "b") == [Presence.READY, Presence.BELOW, Presence.BELOW]
    rig.cache.promote("b", second)
    assert rig.load(first, "a")
    rig.cache.promote("b", second)
    rig.run_until_idle()
    assert rig.load(second, "b")


def test_requests_that_wait_for_each_others_pins_proceed_one_by_one(rig: Rig) -> None:
    first, second = chain(3, salt=1), chain(3, salt=2)
    below_only(rig, first)
    below_only(rig, second)
    for _ in range(2):
        rig.cache.promote("a", first[:2])
        rig.cache.promote("b", second[:2])
        rig.run_until_idle()
    rig.cache.promote("a", first)
    assert presences(rig, first, "a")[2] is Presence.BELOW
    rig.cache.promote("b", second)
    assert presences(rig, second, "b")[2] is Presence.ABSENT
    rig.cache.promote("a", first)
    assert presences(rig, first, "a")[2] is Presence.BELOW
    assert rig.load(second[:2], "b")
    rig.cache.promote("a", first)
    rig.run_until_idle()
    assert rig.load(first, "a")


def test_promote_without_room_in_ram_may_be_repeated(rig: Rig) -> None:
    keys, others = chain(2), chain(7, salt=3)
    below_only(rig, keys)
    rig.save(others)
    rig.run_until_idle()
    load = rig.cache.begin_load("other", others)
    rig.cache.promote("r", keys)
    assert presences(rig, keys) == [Presence.BELOW] * 2
    assert sum(rig.index.pins) == len(others)
    rig.cache.end_load(load)
    rig.cache.promote("r", keys)
    rig.run_until_idle()
    assert rig.load(keys)


def test_ready_block_stays_until_loaded_or_released(rig: Rig) -> None:
    keys = chain(3)
    rig.save(keys)
    rig.run_until_idle()
    rig.cache.promote("r", keys)
    for salt in range(1, 9):
        if rig.cache.begin_save(chain(2, salt), [None, chain(2, salt)[0]]):
            rig.step(1.0)
    assert presences(rig, keys) == [Presence.READY] * 3
    assert rig.load(keys)


def test_promote_reads_from_fastest_tier() -> None:
    fast, slow = memory_tier(name="fast"), memory_tier(name="slow")
    rig = Rig(8, [fast, slow])
    keys = chain(2)
    rig.save(keys)
    rig.run_until_idle()
    rig.residency.evict(0, 2, rig.index.evictable(0))
    row = rig.index.rows[keys[1]]
    fast.delete([keys[1]])
    rig.residency.remove(row, 1)
    rig.cache.promote("r", keys)
    rig.run_until_idle()
    assert [rig.cache.origin("r", each) for each in keys] == [1, 2]
    assert rig.load(keys)
    rig.close()
