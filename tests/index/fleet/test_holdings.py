"""Rows and holes; test_precise has the state machine over the whole index."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.index.fleet import holdings as module
from kvtier.index.fleet.holdings import ROOT, Holdings
from kvtier.index.fleet.table import BlockTable


def made(blocks_max: int = 1000) -> Holdings:
    table = BlockTable(16)
    return Holdings(table, table.take_slot(), blocks_max)


def grow(held: Holdings, names: list[int], level: int = 0) -> list[int]:
    """Add a prefix of these names, each a child of the one before; a block's hash is its name."""
    rows, parent = [], ROOT
    for depth, name in enumerate(names, 1):
        row = held.row(name)
        if row is None:
            row = held.add(name, name << 4, depth, parent)
        assert row is not None
        held.hold(row, level)
        rows.append(row)
        parent = row
    held.check()
    return rows


def test_block_removed_before_child_is_hole_until_either_changes() -> None:
    held = made()
    rows = grow(held, [11, 12, 13])
    held.remove(rows[1], 0)
    assert held.holes == {rows[1]}
    assert list(held.gaps([11, 12, 13])) == [(1, 12)]
    assert list(held.gaps([11, 99, 13])) == []
    held.hold(rows[1], 0)
    assert held.holes == set()
    held.remove(rows[1], 0)
    held.remove(rows[2], 0)
    assert held.holes == set()
    held.check()


def test_slower_copy_is_hole_for_faster_levels() -> None:
    held = made()
    rows = grow(held, [11, 12])
    held.hold(rows[0], 2)
    held.remove(rows[0], 0)
    assert held.holes == {rows[0]}
    held.hold(rows[1], 2)
    held.remove(rows[1], 0)
    assert held.holes == set()
    held.check()


def test_removal_from_leaf_makes_no_holes() -> None:
    held = made()
    rows = grow(held, [11, 12, 13])
    for row in reversed(rows):
        held.remove(row, 0)
        assert held.holes == set()
    assert len(held.table) == 0


def test_idle_names_are_kept_up_to_limit(monkeypatch) -> None:
    monkeypatch.setattr(module, "IDLE_MAX", 3)
    held = made()
    rows = grow(held, [11, 12, 13, 14, 15])
    for row in reversed(rows):
        held.remove(row, 0)
    held.check()
    assert [held.row(name) is not None for name in (15, 14, 13, 12, 11)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    grow(held, [11, 12, 13])
    assert len(held) == 3


def test_copies_are_counted() -> None:
    held = made()
    (row,) = grow(held, [11])
    for _ in range(2):
        held.hold(row, 0)
    held.hold(row, 1)
    for _ in range(2):
        held.remove(row, 0)
        held.check()
        assert held.table.own_byte(11, held.slot) == 127
    held.remove(row, 0)
    assert held.table.own_byte(11, held.slot) == 126
    held.hold(row, 0)
    held.hold(row, 0)
    held.reset(0)
    held.check()
    held.hold(row, 0)
    held.remove(row, 0)
    assert held.table.own_byte(11, held.slot) == 126


def test_uncounted_copies_are_removed_at_once() -> None:
    table = BlockTable(16)
    held = Holdings(table, 0, 10, is_counted=False)
    (row,) = grow(held, [11])
    held.hold(row, 0)
    held.remove(row, 0)
    assert held.table.own_byte(11, 0) == 0
    held.check()


def test_oldest_prefix_ends_make_room() -> None:
    held = made(blocks_max=4)
    grow(held, [11, 12, 13])
    grow(held, [21])
    grow(held, [11, 31])
    assert held.row(31) is not None
    assert held.row(11) is not None
    assert held.refused_blocks
    held.check()
    grow(held, [41, 42, 43, 44])
    assert [held.row(name) is None for name in (11, 12, 13, 21, 31)] == [True] * 5
    held.check()


def test_prefix_longer_than_limit_is_refused() -> None:
    held = made(blocks_max=3)
    grow(held, [11])
    path = [(name, name << 4, depth) for depth, name in enumerate(range(21, 25), 1)]
    assert held.add_path(path, ROOT) is None
    held.check()
    assert [held.row(name) is not None for name in (11, 21, 22, 23, 24)] == [0, 1, 1, 1, 0]
    (row,) = grow(held, [31])
    assert held.row(31) == row


def test_making_room_never_removes_parent() -> None:
    held = made(blocks_max=1)
    (row,) = grow(held, [11])
    assert held.add(12, 12 << 4, 2, row) is None
    assert held.row(11) == row
    held.remove(row, 0)
    assert held.add(12, 12 << 4, 2, row) is None
    assert held.row(11) == row
    assert held.add(13, 13 << 4, 1, ROOT) is not None
    assert held.row(11) is None
    held.check()


def test_making_room_removes_others_before_parent() -> None:
    held = made(blocks_max=2)
    for name in (11, 12):
        (row,) = grow(held, [name])
        held.remove(row, 0)
    parent = held.row(11)
    assert parent is not None
    assert held.add(13, 13 << 4, 2, parent) is not None
    assert (held.row(11), held.row(12)) == (parent, None)
    held.check()


def test_idle_child_is_removed_before_parent(monkeypatch) -> None:
    monkeypatch.setattr(module, "IDLE_MAX", 2)
    held = made()
    (parent,) = grow(held, [11])
    held.remove(parent, 0)
    child = held.add(12, 12 << 4, 2, parent)
    assert child is not None
    (other,) = grow(held, [13])
    held.remove(other, 0)
    assert held.row(12) is None
    assert held.row(11) == parent
    held.check()


def test_second_name_of_same_content_is_refused() -> None:
    held = made()
    grow(held, [11])
    twin = held.add(99, 11 << 4, 1, ROOT)
    assert twin is not None
    held.hold(twin, 0)
    held.remove(twin, 0)
    assert held.refused_blocks == 1
    assert held.table.own_byte(11, held.slot) == 127
    held.check()


def test_add_path_places_whole_path_in_little_room(monkeypatch) -> None:
    monkeypatch.setattr(module, "IDLE_MAX", 2)
    held = made(blocks_max=8)
    for row in grow(held, [11, 12, 13]):
        held.remove(row, 0)
    last = held.add_path(
        [(name, name << 4, depth) for depth, name in enumerate(range(21, 28), 1)], ROOT
    )
    assert last is not None
    held.hold(last, 1)
    held.check()
    assert held.depth(last) == 7
    assert len(held.holes) == 6


names = st.integers(1, 12)
acts = st.tuples(st.sampled_from(["hold", "hold", "let go"]), names, st.integers(0, 2))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 3), st.integers(2, 8), st.lists(acts, max_size=40))
def test_rows_always_have_their_parents(departed_max, blocks_max, taken) -> None:
    """Check a tree in which the parent of n is n // 2, with little room and few idle rows."""
    before, module.IDLE_MAX = module.IDLE_MAX, departed_max
    try:
        held = made(blocks_max)
        for what, name, level in taken:
            path = [name >> shift for shift in range(name.bit_length() - 1, -1, -1)]
            parent: int | None = ROOT
            for depth, one in enumerate(path, 1):
                row = held.row(one)
                if row is None and parent is not None:
                    row = held.add(one, one << 4, depth, parent)
                parent = row
            if parent is not None and parent != ROOT:
                if what == "hold":
                    held.hold(parent, level)
                else:
                    held.remove(parent, level)
            held.check()
            assert len(held) <= blocks_max
    finally:
        module.IDLE_MAX = before
