from collections.abc import Iterator

import pytest

from kvtier.blocks.events import Change
from kvtier.blocks.key import BlockKey
from kvtier.cache.residency import CacheCounters, Residency, TierCounters
from kvtier.index.local import HOLE, IDLE, SAVING
from tests.cache.caches import chain, key, make_residency, memory_tier

SUFFIXES = [group.to_bytes(4, "big") for group in range(2)]
DISK = 1


@pytest.fixture
def residency() -> Iterator[Residency]:
    residency = make_residency(4, [memory_tier(4)])
    yield residency
    residency.check()
    residency.arena.close()


def enter(residency: Residency, keys: list[BlockKey], before: BlockKey | None = None) -> list[int]:
    """Insert a chain into RAM."""
    index = residency.index
    rows = []
    for each, parent in zip(keys, [before, *keys[:-1]], strict=True):
        rows.append(index.add(each, parent, SAVING))
    slots = residency.take_slots(rows)
    assert slots is not None
    for row, slot in zip(rows, slots, strict=True):
        index.slot[row] = slot
        index.state[row] = IDLE
    residency.insert(rows, 0)
    residency.check()
    return rows


def test_evict_takes_leaf_of_coldest_chain(residency: Residency) -> None:
    old, new = chain(2, salt=1), chain(2, salt=2)
    enter(residency, old)
    enter(residency, new)
    assert residency.evict(0, 1, residency.index.evictable(0)) == [old[1]]
    assert residency.arena.free == 1
    assert residency.resident == [3, 0]
    assert residency.counters.tiers[0].evicted_blocks == 1


def test_touch_protects_chain_from_eviction(residency: Residency) -> None:
    old, new = chain(2, salt=1), chain(2, salt=2)
    rows = enter(residency, old)
    enter(residency, new)
    residency.touch(rows)
    assert residency.evict(0, 2, residency.index.evictable(0)) == [new[1], new[0]]


def test_pinned_row_is_not_evicted(residency: Residency) -> None:
    rows = enter(residency, chain(4))
    residency.pin(rows[3])
    row = residency.index.add(key(99), None, SAVING)
    assert residency.take_slots([row]) is None
    residency.unpin(rows[3])
    slots = residency.take_slots([row])
    assert slots is not None
    residency.arena.release(slots)
    residency.index.state[row] = IDLE
    residency.index.prune(row)


def test_take_slots_beyond_capacity_evicts_nothing(residency: Residency) -> None:
    enter(residency, chain(4))
    assert residency.take_slots([0] * 5) is None
    assert residency.resident == [4, 0]


def test_take_slots_for_chain_longer_than_ram_keeps_its_beginning(residency: Residency) -> None:
    """The ancestors of the blocks that need slots are not evicted."""
    keys = chain(5)
    enter(residency, keys[:4])
    index = residency.index
    row = index.add(keys[4], keys[3], SAVING)
    assert residency.take_slots([row]) is None
    assert residency.resident == [4, 0]
    index.state[row] = IDLE
    index.prune(row)


def test_take_slots_evicts_parent_of_lower_tier_child_as_last_resort(
    residency: Residency,
) -> None:
    keys = chain(2)
    rows = enter(residency, keys)
    others = enter(residency, chain(2, salt=1))
    residency.pin(others[0])
    residency.pin(others[1])
    residency.insert([rows[1]], DISK)
    fresh = residency.index.add(key(99), None, SAVING)
    second = residency.index.add(key(98), None, SAVING)
    slots = residency.take_slots([fresh, second])
    assert slots is not None
    assert residency.index.state[rows[0]] == HOLE
    assert residency.index.longest_prefix(keys) == 0
    residency.arena.release(slots)
    for row in (fresh, second):
        residency.index.state[row] = IDLE
        residency.index.prune(row)
    for row in others:
        residency.unpin(row)


def test_evict_takes_all_groups_of_a_position() -> None:
    residency = make_residency(4, group_suffixes=SUFFIXES)
    for group in range(2):
        enter(residency, [key(depth, group) for depth in range(2)])
    evicted = residency.evict(0, 1, residency.index.evictable(0))
    assert sorted(evicted) == [key(1, 0), key(1, 1)]
    assert residency.events[-1].keys == tuple(evicted)
    residency.check()
    residency.arena.close()


def test_evict_spares_pinned_block_of_other_group() -> None:
    residency = make_residency(4, group_suffixes=SUFFIXES)
    rows = [enter(residency, [key(0, group)])[0] for group in range(2)]
    residency.pin(rows[1])
    assert residency.evict(0, 1, residency.index.evictable(0)) == [key(0, 0)]
    residency.check()
    residency.arena.close()


def test_events_record_insertions_and_removals(residency: Residency) -> None:
    rows = enter(residency, chain(2))
    residency.insert(rows, DISK)
    residency.remove(rows[1], DISK)
    told = [(event.change, event.tier, event.keys) for event in residency.events]
    assert told == [
        (Change.STORED, "ram", tuple(chain(2))),
        (Change.STORED, "below", tuple(chain(2))),
        (Change.REMOVED, "below", (chain(2)[1],)),
    ]


def test_reset_keeps_slots_of_pinned_rows(residency: Residency) -> None:
    rows = enter(residency, chain(3))
    residency.pin(rows[0])
    assert residency.reset() == [rows[0]]
    assert residency.arena.free == 3
    residency.check()
    residency.unpin(rows[0])
    assert residency.arena.free == 4


@pytest.mark.parametrize("harm", ["slot", "pin", "resident", "kids"])
def test_check_detects_broken_invariant(harm: str) -> None:
    residency = make_residency(4)
    rows = enter(residency, chain(3))
    if harm == "slot":
        residency.arena.release([residency.index.slot[rows[0]]])
    elif harm == "pin":
        residency.unpin(rows[0])
    elif harm == "resident":
        residency.resident[0] += 1
    else:
        residency.index.kids[rows[0]] += 1
    with pytest.raises(AssertionError):
        residency.check()
    residency.arena.close()


def test_take_durations_returns_each_duration_once() -> None:
    counters = CacheCounters([TierCounters()])
    counters.durations.append((1, "read", 0.5))
    assert counters.take_durations() == [(1, "read", 0.5)]
    assert counters.take_durations() == []
