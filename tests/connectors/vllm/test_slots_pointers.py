import ctypes

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm.v1.kv_offload.base")

from kvtier.connectors.vllm.slots import Piece, SlotLayout, Turn, copy_pointers
from tests.connectors.vllm.caches import SHAPES, Shape, flat, pages


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_copy_pointers_yield_the_blocks(shape: Shape) -> None:
    caches = shape.build()
    slice_bytes = shape.worker_bytes_per_block * 3
    layout = SlotLayout.from_caches(caches, blocks_per_chunk=3, slice_bytes=slice_bytes, rank=1)
    arena = np.zeros((8, 2 * slice_bytes), dtype=np.uint8)
    groups = len(shape.groups)
    stored = [[5, 6, 1], [2, 11]][:groups]
    # Group 0 starts in the middle of slot 4 and goes on in slot 2; group 1 fits slot 7.
    slots = [4, 2, 7][: groups + 1]
    moves = layout.expand(flat(stored), [len(s) for s in stored], [2, 0][:groups], slots)
    pointers = copy_pointers(
        layout, moves, is_store=True, host_address=arena.ctypes.data, slot_bytes=arena.shape[1]
    )
    assert pointers.sizes.sum() == layout.stored_bytes(moves)
    low, high = arena.ctypes.data, arena.ctypes.data + arena.nbytes
    assert ((pointers.host >= low) & (pointers.host + pointers.sizes <= high)).all()
    for device, host, size in zip(*(array.tolist() for array in pointers), strict=True):
        ctypes.memmove(host, device, size)
    size = layout.sub_block_bytes[0]
    places = [(4, 2 * size), (2, 0), (2, size)]
    for block, (slot, offset) in zip(stored[0], places, strict=True):
        start = slice_bytes + offset
        assert arena[slot, start : start + size].tobytes() == pages(caches, 0, block)
    if groups == 2:
        size = layout.sub_block_bytes[1]
        expected = pages(caches, 1, 2) + pages(caches, 1, 11)
        assert arena[7, slice_bytes : slice_bytes + 2 * size].tobytes() == expected
    assert not arena[:, :slice_bytes].any()


def test_copy_pointers_of_no_copies_are_empty() -> None:
    caches = SHAPES["padded pages"].build()
    layout = SlotLayout.from_caches(caches, blocks_per_chunk=1, slice_bytes=192, rank=0)
    assert [
        len(array)
        for array in copy_pointers(layout, [], is_store=False, host_address=0, slot_bytes=4096)
    ] == [0, 0, 0]


def test_copy_pointers_have_an_entry_per_fragment_and_divide_stores() -> None:
    piece = Piece(0, 1000, 64, 8, 4, fragments=3, device_step=8, host_step=16, turn=Turn(2, 1))
    layout = SlotLayout(
        [[piece]],
        sub_block_bytes=[48],
        blocks_per_chunk=1,
        device_blocks=10,
        slice_bytes=48,
        slice_offset=0,
        rank=1,
    )
    moves = layout.expand([2, 5], [2], [0], [6, 7])
    loaded = copy_pointers(layout, moves, is_store=False, host_address=50_000, slot_bytes=4096)
    assert loaded.device.tolist() == [1128, 1136, 1144, 1320, 1328, 1336]
    places = [50_000 + slot * 4096 + 4 + at for slot in (6, 7) for at in (0, 16, 32)]
    assert loaded.host.tolist() == places
    assert loaded.sizes.tolist() == [8] * 6
    stored = copy_pointers(layout, moves, is_store=True, host_address=50_000, slot_bytes=4096)
    assert [column.tolist() for column in stored] == [column.tolist()[3:] for column in loaded]
