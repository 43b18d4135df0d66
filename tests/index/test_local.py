import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.blocks.key import UNKNOWN_PARENT, BlockKey
from kvtier.eviction.lru import Lru
from kvtier.index.local import (
    DISCARDED,
    HOLE,
    IDLE,
    PROMOTING,
    SAVING,
    LocalIndex,
    Presence,
)

DISK = 1


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(32, "big"))


def chain(count: int, first: int = 0) -> list[BlockKey]:
    return [key(first + depth) for depth in range(count)]


def hold_chain(index: LocalIndex, keys: list[BlockKey], tier: int = 0) -> list[int]:
    rows = []
    for parent, each in zip([None, *keys[:-1]], keys, strict=True):
        rows.append(index.add(each, parent, IDLE))
        index.hold(rows[-1], tier)
    return rows


def drop(index: LocalIndex, row: int, tier: int = 0) -> None:
    index.remove(row, tier)
    index.prune(row)
    index.check()


@pytest.mark.parametrize(
    ("state", "tiers", "presence"),
    [
        (IDLE, [0], Presence.READY),
        (IDLE, [0, 1], Presence.READY),
        (SAVING, [], Presence.PENDING),
        (SAVING, [1], Presence.PENDING),
        (PROMOTING, [1], Presence.PENDING),
        (IDLE, [1], Presence.BELOW),
        (HOLE, [], Presence.ABSENT),
    ],
)
def test_presence_of_each_state(state: int, tiers: list[int], presence: Presence) -> None:
    index = LocalIndex(2)
    row = index.add(key(1), None, state)
    for tier in tiers:
        index.hold(row, tier)
    assert index.presence(key(1)) is presence
    assert index.presence(key(2)) is Presence.ABSENT


def test_tiers_must_fit_the_mask() -> None:
    LocalIndex(8)
    for tiers in (0, 9):
        with pytest.raises(AssertionError):
            LocalIndex(tiers)


def test_longest_prefix_bisects_without_holes() -> None:
    index = LocalIndex(2)
    keys = chain(100)
    hold_chain(index, keys[:60])
    assert index.longest_prefix(keys) == 60
    assert index.longest_prefix(keys[:30]) == 30
    assert index.longest_prefix(keys[60:]) == 0
    assert index.longest_prefix([]) == 0


def test_removed_inner_block_is_hole_until_children_go() -> None:
    index = LocalIndex(2)
    keys = chain(3)
    rows = hold_chain(index, keys)
    drop(index, rows[1])
    assert index.state[rows[1]] == HOLE
    assert len(index) == 2
    assert index.longest_prefix(keys) == 1
    drop(index, rows[2])
    assert index.holes == 0
    assert list(index.rows) == [keys[0]]


def test_hole_saved_again_keeps_row_and_children() -> None:
    index = LocalIndex(2)
    keys = chain(3)
    rows = hold_chain(index, keys)
    drop(index, rows[0])
    assert index.add(keys[0], None, SAVING) == rows[0]
    assert index.longest_prefix(keys) == 3
    index.check()


def test_chain_of_holes_is_freed_with_last_child() -> None:
    index = LocalIndex(2)
    rows = hold_chain(index, chain(50))
    for row in rows[:-1]:
        drop(index, row)
    assert index.holes == 49
    drop(index, rows[-1])
    assert not index.rows
    assert index.holes == 0


def test_pinned_row_without_bytes_is_kept_until_unpinned() -> None:
    index = LocalIndex(2)
    (row,) = hold_chain(index, chain(1))
    index.pins[row] = 1
    drop(index, row)
    assert index.presence(key(0)) is Presence.ABSENT
    assert key(0) in index.rows
    index.pins[row] = 0
    index.prune(row)
    assert not index.rows


@pytest.mark.parametrize("parent", [UNKNOWN_PARENT, key(99)])
def test_detached_block_disables_bisection(parent: BlockKey) -> None:
    index = LocalIndex(2)
    keys = chain(5)
    rows = [index.add(keys[2], parent, IDLE)]
    rows += [index.add(keys[3], keys[2], IDLE), index.add(keys[4], keys[3], IDLE)]
    for row in rows:
        index.hold(row, 0)
    assert index.longest_prefix(keys) == 0
    for row in reversed(rows):
        drop(index, row)
    assert index.detached == 0


def test_rows_are_reused() -> None:
    index = LocalIndex(2)
    for turn in range(5):
        rows = hold_chain(index, chain(10, first=turn * 10))
        assert sorted(rows) == list(range(10))
        for row in reversed(rows):
            drop(index, row)
    assert len(index.keys) == 10


def test_evictable_accepts_unpinned_leaf_without_making_hole() -> None:
    index = LocalIndex(2)
    root, inner, leaf = hold_chain(index, chain(3))
    evictable = index.evictable(0)
    assert [evictable(row) for row in (root, inner, leaf)] == [False, False, True]
    index.pins[leaf] = 1
    assert not evictable(leaf)
    index.pins[leaf] = 0
    # Only the disk holds the child: RAM may evict the parent if the disk holds that as well.
    index.hold(leaf, DISK)
    drop(index, leaf)
    assert not evictable(inner)
    index.hold(inner, DISK)
    assert evictable(inner)
    assert not index.evictable(DISK)(inner)
    assert index.evictable(DISK)(leaf)


def test_reset_keeps_busy_rows_until_freed() -> None:
    index = LocalIndex(2)
    rows = hold_chain(index, chain(4))
    index.pins[rows[1]] = 1
    saving = index.add(key(50), key(3), SAVING)
    hold_chain(index, [key(60)], tier=DISK)
    assert sorted(index.reset()) == sorted([rows[1], saving])
    index.check()
    assert len(index) == 0
    assert index.state[saving] == DISCARDED
    fresh = hold_chain(index, chain(4))
    assert not {rows[1], saving} & set(fresh)
    index.pins[rows[1]] = 0
    index.free_discarded(rows[1])
    index.free_discarded(saving)
    index.check()


def walk(index: LocalIndex, keys: list[BlockKey]) -> int:
    for length, each in enumerate(keys):
        if index.presence(each) is Presence.ABSENT:
            return length
    return len(keys)


@given(st.data())
def test_random_forests_match_recount(data: st.DataObject) -> None:
    """After each change, bisection agrees with a walk and every count with a recount."""
    index = LocalIndex(2)
    nodes = st.integers(1, 15)
    for _ in range(data.draw(st.integers(1, 40))):
        node, tier = data.draw(nodes), data.draw(st.integers(0, 1))
        row = index.rows.get(key(node))
        verb = data.draw(st.sampled_from(["enter", "enter", "leave", "pin", "unpin"]))
        if verb == "enter":
            if row is None or index.state[row] == HOLE:
                parent = key(node // 2) if node > 1 else None
                row = index.add(key(node), parent, IDLE)
            if not index.held[row] >> tier & 1:
                index.hold(row, tier)
        elif row is not None and verb == "leave" and index.held[row] >> tier & 1:
            index.remove(row, tier)
            index.prune(row)
        elif row is not None and verb == "pin":
            index.pins[row] += 1
        elif row is not None and verb == "unpin" and index.pins[row]:
            index.pins[row] -= 1
            index.prune(row)
        index.check()
        for leaf in range(8, 16):
            keys = [key(leaf >> up) for up in (3, 2, 1, 0)]
            assert index.longest_prefix(keys) == walk(index, keys)


def test_memory_per_block_is_bounded() -> None:
    """Keys, index and two policies take at most 300 bytes per block."""
    count = 100_000
    tracemalloc.start()
    index, policies = LocalIndex(2), [Lru(), Lru()]
    parent = None
    for number in range(count):
        each = BlockKey(number.to_bytes(36, "big"))
        row = index.add(each, parent, IDLE)
        for tier, policy in enumerate(policies):
            index.hold(row, tier)
            policy.insert(row, each)
        parent = each if number % 64 else None
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes / count <= 300
