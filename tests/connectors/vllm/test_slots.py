import numpy as np
import pytest

from kvtier.connectors.vllm.slots import Piece, SlotLayout, Turn
from kvtier.errors import InvalidSettings
from tests.cases import case

GROUPS = [
    [Piece(0, 1000, 64, 40, 0), Piece(1, 9000, 64, 24, 40)],
    [Piece(0, 1000, 64, 16, 0)],
]


def layout(blocks_per_chunk: int = 3, slice_bytes: int = 192, rank: int = 0) -> SlotLayout:
    return SlotLayout(
        GROUPS,
        sub_block_bytes=[64, 16],
        blocks_per_chunk=blocks_per_chunk,
        device_blocks=10,
        slice_bytes=slice_bytes,
        slice_offset=rank * slice_bytes,
        rank=rank,
    )


def test_expand_with_one_block_per_chunk() -> None:
    here = layout(1, 64)
    moves = here.expand([4, 5, 6], [2, 1], [7, 0], [20, 21, 22])
    assert [m.group for m in moves] == [0, 1]
    assert moves[0].blocks.tolist() == [4, 5]
    assert moves[0].slots.tolist() == [20, 21]
    assert here.offsets(moves[0]).tolist() == [0, 0]
    assert moves[1].slots.tolist() == [22]


def test_expand_with_partial_first_and_last_chunk() -> None:
    # Group 0 begins at request block 5 (sub-block 2 of its chunk), group 1 at block 3.
    moves = layout().expand([1, 2, 3, 4, 5, 6, 7], [5, 2], [5, 3], [10, 11, 12, 13])
    assert moves[0].slots.tolist() == [10, 11, 11, 11, 12]
    assert moves[0].sub_blocks.tolist() == [2, 0, 1, 2, 0]
    assert layout().offsets(moves[0]).tolist() == [128, 0, 64, 128, 0]
    assert moves[1].slots.tolist() == [13, 13]
    assert layout().offsets(moves[1]).tolist() == [0, 16]


def test_expand_skips_group_without_blocks() -> None:
    moves = layout().expand([1], [0, 1], [0, 4], [9])
    assert [m.group for m in moves] == [1]
    assert layout().offsets(moves[0]).tolist() == [16]


def test_slice_of_a_rank_follows_those_of_lower_ranks() -> None:
    here = layout(rank=2)
    (move,) = here.expand([1, 2], [2, 0], [1, 0], [0])
    assert here.offsets(move).tolist() == [2 * 192 + 64, 2 * 192 + 128]


def test_copied_bytes_exclude_padding() -> None:
    moves = layout().expand([1, 2, 3], [2, 1], [0, 0], [0, 1])
    assert layout().loaded_bytes(moves) == 2 * 64 + 16
    assert layout().stored_bytes(moves) == 2 * 64 + 16


def test_ranks_with_equal_bytes_divide_a_store() -> None:
    ranks = [
        SlotLayout(
            [[Piece(0, 0, 64, 24, 40, turn=Turn(3, index)), Piece(0, 24, 64, 40, 0)]],
            sub_block_bytes=[64],
            blocks_per_chunk=2,
            device_blocks=40,
            slice_bytes=128,
            slice_offset=0,
            rank=index,
        )
        for index in range(3)
    ]
    taken = []
    for rank in ranks:
        # The ranks have the same sub-blocks in different device blocks, but in the same slots.
        blocks = [(block * 7 + rank.rank) % 40 for block in range(9)]
        (move,) = rank.expand(blocks, [9], [1], [8, 3, 5, 1, 0])
        part = rank.written(move, Turn(3, rank.rank))
        taken += [*zip(part.slots.tolist(), part.sub_blocks.tolist(), strict=True)]
        assert rank.written(move, Turn()) is move
        assert rank.loaded_bytes([move]) == 9 * 64
        assert rank.stored_bytes([move]) == 9 * 40 + len(part.blocks) * 24
    whole = zip(move.slots.tolist(), move.sub_blocks.tolist(), strict=True)
    assert sorted(taken) == sorted(whole)


def test_expand_rejects_inconsistent_numbers() -> None:
    for name, blocks, sizes, firsts, slots in (
        ("too few slots", [1, 2], [2, 0], [2, 0], [0]),
        ("too many slots", [1, 2], [2, 0], [0, 0], [0, 1]),
        ("too few blocks", [1], [2, 0], [0, 0], [0]),
        ("too many blocks", [1, 2, 3], [2, 0], [0, 0], [0]),
        ("block past the device", [10], [1, 0], [0, 0], [0]),
        ("negative block", [-1], [1, 0], [0, 0], [0]),
        ("missing group", [1], [1], [0], [0]),
    ):
        with case(name), pytest.raises(ValueError, match=r".+"):
            layout().expand(blocks, sizes, firsts, slots)


def test_too_small_slice_is_rejected_with_both_sizes() -> None:
    with pytest.raises(InvalidSettings, match=r"192 bytes per slot.*provides 191"):
        layout(slice_bytes=191)


def test_expand_agrees_with_enumerating_sub_blocks() -> None:
    here = layout()
    for first in range(7):
        for size in range(1, 8):
            slots = np.arange(50, 50 + -(-(first % 3 + size) // 3))
            (move,) = here.expand(range(size), [size, 0], [first, 0], slots)
            expected = [(50 + p // 3, p % 3 * 64) for p in range(first % 3, first % 3 + size)]
            assert (
                list(zip(move.slots.tolist(), here.offsets(move).tolist(), strict=True)) == expected
            )
