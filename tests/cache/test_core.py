import threading

import pytest

from kvtier.admission.always import Always
from kvtier.blocks.events import Change
from kvtier.cache.core import TieredCache
from kvtier.index.local import Presence
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.testing.memory_tier import MemoryTier
from kvtier.transfer.engine import TransferEngine
from tests.cache.caches import (
    DEADLINE_S,
    SLOT_BYTES,
    Rig,
    chain,
    fill,
    key,
    make_residency,
    memory_tier,
)


@pytest.fixture
def rig():
    rig = Rig(8)
    yield rig
    rig.cache.check()
    rig.close()


def test_load_returns_saved_bytes(rig: Rig) -> None:
    keys = chain(4)
    rig.save(keys)
    assert rig.load(keys)
    assert rig.load(keys[:2])
    counters = rig.cache.counters
    assert (counters.tiers[0].hit_blocks, counters.tiers[0].written_blocks) == (6, 4)
    assert counters.miss_blocks == 4


def test_saved_block_is_pending_until_end_save(rig: Rig) -> None:
    keys = chain(2)
    save = rig.cache.begin_save(keys, [None, keys[0]])
    assert save is not None
    assert rig.cache.presence("r", keys[0]) is Presence.PENDING
    assert rig.cache.begin_load("r", keys) is None
    assert rig.cache.lookup(keys) == 2
    rig.cache.end_save(save)
    assert rig.cache.begin_load("r", keys) is not None


def test_empty_save_needs_no_end_save(rig: Rig) -> None:
    keys = chain(3)
    rig.save(keys)
    save = rig.cache.begin_save(keys, [None, *keys[:-1]])
    assert save is not None
    assert save.keys == save.slots == []
    assert not rig.cache._saves, "an empty save is never ended"


def test_end_save_discards_failed_slots(rig: Rig) -> None:
    keys = chain(3)
    save = rig.cache.begin_save(keys, [None, *keys[:-1]])
    rig.cache.end_save(save, frozenset(save.slots[1:]))
    assert [rig.cache.presence("r", each) for each in keys] == [
        Presence.READY,
        Presence.ABSENT,
        Presence.ABSENT,
    ]
    assert rig.cache.arena.free == 7
    assert rig.cache.lookup(keys) == 1


def test_failed_parent_hides_child_from_lookup(rig: Rig) -> None:
    keys = chain(2)
    save = rig.cache.begin_save(keys, [None, keys[0]])
    fill(rig.cache, save)
    rig.cache.end_save(save, frozenset(save.slots[:1]))
    assert rig.cache.lookup(keys) == 0
    rig.save(keys)
    assert rig.load(keys)


def test_begin_save_skips_resident_and_pending_blocks(rig: Rig) -> None:
    keys = chain(4)
    rig.save(keys[:2])
    first = rig.cache.begin_save(keys[:3], [None, *keys[:2]])
    assert first.keys == [keys[2]]
    second = rig.cache.begin_save([*keys, keys[3]], [None, *keys])
    assert second.keys == [keys[3]]
    fill(rig.cache, first)
    fill(rig.cache, second)
    rig.cache.end_save(second)
    rig.cache.end_save(first)
    assert rig.load(keys)


def test_begin_save_that_does_not_fit_changes_nothing(rig: Rig) -> None:
    keys = chain(2)
    rig.save(keys)
    assert rig.cache.begin_save(chain(9, salt=1), [None, *chain(8, salt=1)]) is None
    assert rig.load(keys)
    assert rig.cache.counters.tiers[0].dropped_blocks == 9
    assert rig.cache.presence("r", chain(1, salt=1)[0]) is Presence.ABSENT


def test_end_load_and_end_save_are_idempotent(rig: Rig) -> None:
    keys = chain(2)
    save = rig.save(keys)
    rig.cache.end_save(save, frozenset(save.slots))
    first, second = (rig.cache.begin_load("r", keys) for _ in range(2))
    rig.cache.end_load(first)
    rig.cache.end_load(first)
    assert sum(rig.index.pins) == 2
    rig.cache.end_load(second)
    assert rig.load(keys)


def test_block_under_load_is_not_evicted(rig: Rig) -> None:
    keys = chain(6)
    rig.save(keys)
    load = rig.cache.begin_load("r", keys)
    assert rig.cache.begin_save(chain(3, salt=1), [None, *chain(2, salt=1)]) is None
    rig.cache.end_load(load)
    rig.save(chain(3, salt=1))
    assert rig.cache.lookup(keys) == 5


def test_begin_save_takes_lower_tier_block_from_device() -> None:
    rig = Rig(4, [memory_tier()])
    keys = chain(2)
    rig.save(keys)
    rig.run_until_idle()
    rig.residency.evict(0, 2, rig.index.evictable(0))
    save = rig.cache.begin_save(keys, [None, keys[0]])
    assert save.keys == keys
    fill(rig.cache, save)
    assert rig.cache.presence("r", keys[0]) is Presence.PENDING
    # The lower tier may evict it meanwhile.
    rig.cache._demotions[0].delete(rig.residency.make_room(1, 2))
    rig.cache.end_save(save)
    assert rig.load(keys)
    rig.run_until_idle()
    assert list(rig.cache.resident_blocks) == [2, 2]
    rig.close()


def test_failed_save_of_lower_tier_block_leaves_it_there() -> None:
    rig = Rig(4, [memory_tier()])
    keys = chain(1)
    rig.save(keys)
    rig.run_until_idle()
    rig.residency.evict(0, 1, rig.index.evictable(0))
    save = rig.cache.begin_save(keys, [None])
    rig.cache.end_save(save, frozenset(save.slots))
    assert rig.cache.presence("r", keys[0]) is Presence.BELOW
    rig.close()


def test_take_events_returns_events_in_order(rig: Rig) -> None:
    rig.save(chain(1))
    rig.cache.reset()
    events = [(event.change, event.keys) for event in rig.cache.take_events()]
    assert events == [(Change.STORED, tuple(chain(1))), (Change.REMOVED, tuple(chain(1)))]
    assert rig.cache.take_events() == []


def test_reset_during_transfers_loads_and_saves_releases_everything() -> None:
    tier = memory_tier()
    rig = Rig(12, [tier], delay_s=1.0)
    below, written, loaded, saved = (chain(2, salt) for salt in range(4))
    rig.save(below)
    rig.run_until_idle()
    rig.residency.evict(0, 2, lambda row: rig.index.keys[row] in below)
    rig.cache.promote("r", below)
    rig.save(loaded)
    load = rig.cache.begin_load("s", loaded)
    rig.save(written)
    save = rig.cache.begin_save(saved, [None, saved[0]])
    rig.cache.reset()
    rig.cache.check()
    rig.cache.end_load(load)
    rig.cache.end_save(save)
    for keys in (below, written, loaded, saved):
        assert rig.cache.lookup(keys) == 0
    # Slots that the engine is copying are not allocated until it reports that the copy has ended.
    taken = rig.cache.arena.free
    assert taken <= 12 - len(loaded) - len(saved)
    rig.run_until_idle()
    assert len(tier) == 0
    assert rig.cache.arena.free == 12 - len(loaded) - len(saved)
    rig.cache.reset()
    rig.cache.finish_reset()
    rig.cache.finish_reset()
    assert rig.cache.arena.free == 12
    assert not any(rig.index.pins)
    rig.save(below)
    assert rig.load(below)
    rig.close()


def test_begin_load_and_touch_count_as_uses(rig: Rig) -> None:
    first, second, third = (chain(2, salt) for salt in range(3))
    for keys in (first, second, third):
        rig.save(keys)
    assert rig.load(first)
    rig.cache.touch([*second, key(999)])
    rig.save(chain(4, salt=9))
    assert [rig.cache.lookup(keys) for keys in (first, second, third)] == [2, 2, 0]


def test_durations_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtier.cache.core._DURATIONS_KEPT", 2)
    rig = Rig(8, [memory_tier()])
    for salt in range(4):
        rig.save(chain(1, salt))
        rig.run_until_idle()
    assert len(rig.cache.counters.take_durations()) == 2
    assert rig.cache.counters.take_durations() == []
    rig.close()


def test_cache_reports_tiers_capacities_and_residents() -> None:
    rig = Rig(8, [memory_tier(20)])
    assert list(rig.cache.tier_names) == ["ram", "below"]
    assert rig.cache.capacity_blocks == [8, 20]
    rig.save(chain(3))
    assert list(rig.cache.resident_blocks) == [3, 0]
    rig.run_until_idle()
    assert list(rig.cache.resident_blocks) == [3, 3]
    rig.close()


def test_close_during_transfers_is_idempotent() -> None:
    before = set(threading.enumerate())
    tier = FaultyTier(memory_tier())
    rig = Rig(8, [tier])
    engine = TransferEngine(rig.tiers, SLOT_BYTES, 64)
    cache = TieredCache(rig.residency, rig.tiers, [Always(), Always()], engine, DEADLINE_S)
    tier.inject(Fault.IO_ERROR)
    save = cache.begin_save(chain(2), [None, chain(2)[0]])
    cache.end_save(save)
    cache.close(drain_s=5.0)
    cache.close()
    assert set(threading.enumerate()) <= before


class Stuck(MemoryTier):
    """A tier whose write does not return, and whose `close` waits for calls in progress."""

    def __init__(self) -> None:
        super().__init__(name="stuck", io_threads=1)
        self.begun, self.may_return = threading.Event(), threading.Event()

    def write_from(self, moves, parents):
        self.begun.set()
        self.may_return.wait()
        return super().write_from(moves, parents)

    def close(self) -> None:
        assert self.may_return.is_set(), "close would wait forever"
        super().close()


def test_close_skips_tier_whose_call_does_not_return(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kvtier.cache.core._CLOSE_S", 0.01)
    tier = Stuck()
    residency = make_residency(8, [tier])
    engine = TransferEngine([tier], SLOT_BYTES, 64)
    cache = TieredCache(residency, [tier], [Always(), Always()], engine, DEADLINE_S)
    save = cache.begin_save(chain(2), [None, chain(2)[0]])
    cache.end_save(save)
    assert tier.begun.wait(30.0)
    cache.close()
    assert "does not return" in caplog.text
    tier.may_return.set()
    assert engine.close(30.0)
