import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.index.fleet import table as module
from kvtier.index.fleet.table import POOL, SWEPT_AT_ONCE, BlockTable

SLOTS = 5
CHAIN = list(range(100, 140))


def filled(reaches: dict[tuple[int, int], int]) -> BlockTable:
    """Create a table in which each (slot, bit) holds so many leading blocks of CHAIN."""
    table = BlockTable(16)
    for _ in range(SLOTS):
        table.take_slot()
    for (slot, bit), reach in reaches.items():
        table.set_bits(CHAIN[:reach], slot, 1 << bit, 1 << bit)
    return table


bits = st.tuples(st.integers(1, SLOTS), st.integers(0, 7))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(bits, st.integers(0, 40)), st.integers(0, 40))
def test_ends_finds_every_bit_in_one_descent(reaches, length) -> None:
    table = filled(reaches)
    ends = table.ends(CHAIN[:length])
    for slot in range(1, SLOTS + 1):
        for bit in range(8):
            assert ends.reach(slot, 1 << bit) == min(reaches.get((slot, bit), 0), length)


held = st.lists(st.booleans(), min_size=12, max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(held, min_size=3, max_size=3))
def test_ends_with_gaps_never_reports_too_little(patterns) -> None:
    table = filled({})
    for slot, pattern in enumerate(patterns, 1):
        for block, is_held in zip(CHAIN, pattern, strict=False):
            table.set_held(block, slot, 127 if is_held else 0)
    ends = table.ends(CHAIN[:12])
    for slot, pattern in enumerate(patterns, 1):
        prefix = pattern.index(False) if False in pattern else 12
        end = ends.reach(slot, 1)
        assert end >= prefix
        assert end == 12 or not pattern[end]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 11), st.integers(0, 12), st.integers(0, 127)),
        max_size=30,
    )
)
def test_set_bits_equals_writing_bytes(strokes) -> None:
    table = filled({})
    model: dict[tuple[int, int], int] = {}
    for slot, start, end, value in strokes:
        table.set_bits(CHAIN[start:end], slot, value)
        model.update({(slot, block): value for block in CHAIN[start:end]})
    for (slot, block), value in model.items():
        assert table.own_byte(block, slot) == value
    assert len(table) == len({block for (_, block), value in model.items() if value})


def test_routed_bits_are_separate_from_held_bits() -> None:
    table = filled({})
    table.set_bits(CHAIN[:4], 1, 128, 128)
    table.set_bits(CHAIN[:2], 1, 127)
    table.set_bits(CHAIN[:4], 1, 0, 128)
    assert [table.own_byte(block, 1) for block in CHAIN[:4]] == [127, 127, 0, 0]
    assert len(table) == 2


def test_pool_counts_for_members_only() -> None:
    table = filled({(1, 0): 3, (POOL, 3): 9})
    table.join_pool(1)
    ends = table.ends(CHAIN)
    assert [ends.reach(1, 1 << bit) for bit in range(8)] == [3, 0, 0, 9, 0, 0, 0, 0]
    assert ends.reach(2, 255) == 0
    assert table.byte(CHAIN[5], 1) == 8
    assert table.own_byte(CHAIN[5], 1) == 0


def test_slot_being_cleared_does_not_hide_others() -> None:
    table = filled({(2, 0): 20})
    blocks = [*CHAIN, *range(1000, 1000 + 2 * SWEPT_AT_ONCE)]
    table.set_bits(blocks, 1, 127)
    # While the released slot is being cleared, its bits remain in pieces along the chain.
    table.release_slot(1, [*CHAIN[1::2], *blocks[len(CHAIN) :], *CHAIN[::2]])
    assert table.own_byte(CHAIN[0], 1) == 127
    assert table.own_byte(CHAIN[1], 1) == 0
    ends = table.ends(CHAIN)
    assert (ends.reach(1, 255), ends.reach(2, 255)) == (0, 20)
    assert ends.lengths == [0, 20]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(bits, st.integers(0, 40)), st.integers(0, 40))
def test_walked_ends_equal_bisected_ends(reaches, length) -> None:
    table = filled(reaches)
    table.join_pool(2)
    ends, walked = table.ends(CHAIN[:length]), table.ends(CHAIN[:length], walked=True)
    every = [(slot, 1 << bit) for slot in range(1, SLOTS + 1) for bit in range(8)]
    assert [ends.reach(*one) for one in every] == [walked.reach(*one) for one in every]


def test_released_slot_stops_counting_and_is_cleared_in_pieces() -> None:
    table = filled({})
    blocks = list(range(3 * SWEPT_AT_ONCE + 5))
    table.set_bits(blocks, 1, 127)
    table.release_slot(1, blocks)
    assert len(table) == 2 * SWEPT_AT_ONCE + 5
    assert table.ends(blocks).reach(1, 255) == 0
    assert table.take_slot() == SLOTS + 1
    for _ in range(3):
        table.sweep()
    assert len(table) == 0
    assert table.take_slot() == 1


def test_equal_masks_are_one_object_in_bounded_table(monkeypatch) -> None:
    monkeypatch.setattr(module, "_INTERNED_MAX", 8)
    table = filled({(1, 0): 40, (2, 1): 40})
    assert len({id(mask) for mask in table._masks.values()}) == 1
    for value in range(1, 128):
        table.set_held(value, 3, value)
    assert len(table._interned) <= 9
    assert [table.own_byte(value, 3) for value in range(1, 100)] == list(range(1, 100))


def test_memory_per_block_does_not_depend_on_holders() -> None:
    table = filled({})
    blocks = [number << 40 for number in range(100_000)]
    tracemalloc.start()
    for slot in range(1, SLOTS + 1):
        table.set_bits(blocks, slot, 127)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / len(blocks) < 110
