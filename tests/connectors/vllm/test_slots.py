import numpy as np
import pytest

from kvtier.connectors.vllm.slots import Page, SlotLayout
from kvtier.errors import InvalidSettings

GROUPS = [
    [Page(0, 1000, 64, 40, 0), Page(1, 9000, 64, 24, 40)],
    [Page(0, 1000, 64, 16, 0)],
]


def layout(blocks_per_chunk: int = 3, slice_bytes: int = 192, rank: int = 0) -> SlotLayout:
    return SlotLayout(
        GROUPS,
        blocks_per_chunk=blocks_per_chunk,
        device_blocks=10,
        slice_bytes=slice_bytes,
        rank=rank,
    )


def test_one_block_a_chunk_pairs_blocks_and_slots() -> None:
    moves = layout(1, 64).expand([4, 5, 6], [2, 1], [7, 0], [20, 21, 22])
    assert [m.group for m in moves] == [0, 1]
    assert moves[0].blocks.tolist() == [4, 5]
    assert moves[0].slots.tolist() == [20, 21]
    assert moves[0].offsets.tolist() == [0, 0]
    assert moves[1].slots.tolist() == [22]


def test_first_and_last_chunk_of_each_group_may_be_partial() -> None:
    # Group 0 begins at request block 5 (sub-block 2 of its chunk), group 1 at block 3.
    moves = layout().expand([1, 2, 3, 4, 5, 6, 7], [5, 2], [5, 3], [10, 11, 12, 13])
    assert moves[0].slots.tolist() == [10, 11, 11, 11, 12]
    assert moves[0].offsets.tolist() == [128, 0, 64, 128, 0]
    assert moves[1].slots.tolist() == [13, 13]
    assert moves[1].offsets.tolist() == [0, 16]


def test_a_group_without_blocks_uses_no_slot() -> None:
    moves = layout().expand([1], [0, 1], [0, 4], [9])
    assert [m.group for m in moves] == [1]
    assert moves[0].offsets.tolist() == [16]


def test_a_rank_writes_behind_the_ranks_before_it() -> None:
    moves = layout(rank=2).expand([1, 2], [2, 0], [1, 0], [0])
    assert moves[0].offsets.tolist() == [2 * 192 + 64, 2 * 192 + 128]


def test_moved_bytes_counts_unpadded_pages() -> None:
    moves = layout().expand([1, 2, 3], [2, 1], [0, 0], [0, 1])
    assert layout().moved_bytes(moves) == 2 * 64 + 16


@pytest.mark.parametrize(
    ("blocks", "sizes", "firsts", "slots"),
    [
        ([1, 2], [2, 0], [2, 0], [0]),
        ([1, 2], [2, 0], [0, 0], [0, 1]),
        ([1], [2, 0], [0, 0], [0]),
        ([1, 2, 3], [2, 0], [0, 0], [0]),
        ([10], [1, 0], [0, 0], [0]),
        ([-1], [1, 0], [0, 0], [0]),
        ([1], [1], [0], [0]),
    ],
    ids=[
        "too few slots", "a slot over", "too few blocks", "a block over",
        "past the device", "before the device", "groups missing",
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(
    blocks: list[int], sizes: list[int], firsts: list[int], slots: list[int]
) -> None:
    with pytest.raises(ValueError, match=r".+"):
        layout().expand(blocks, sizes, firsts, slots)


def test_a_slice_that_is_too_small_names_both_sizes() -> None:
    with pytest.raises(InvalidSettings, match=r"192 bytes a slot.*gives it 191"):
        layout(slice_bytes=191)


def test_expand_agrees_with_enumerating_sub_blocks() -> None:
    here = layout()
    for first in range(7):
        for size in range(1, 8):
            slots = np.arange(50, 50 + -(-(first % 3 + size) // 3))
            (move,) = here.expand(range(size), [size, 0], [first, 0], slots)
            expected = [(50 + p // 3, p % 3 * 64) for p in range(first % 3, first % 3 + size)]
            assert list(zip(move.slots.tolist(), move.offsets.tolist(), strict=True)) == expected
