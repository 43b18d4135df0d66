"""Pointer arrays for a batched device copy: one entry a page, pure numpy.

Apart from the CUDA copier because this is all of it that can be wrong silently, and all of it
that can be tested on a machine without a GPU.
"""

from typing import NamedTuple

import numpy as np

from kvtier.connectors.vllm.slots import GroupMoves, Indices, SlotLayout


class Pointers(NamedTuple):
    """Entry i: `sizes[i]` bytes between `device[i]` and `host[i]`; int64, equally long."""

    device: Indices
    host: Indices
    sizes: Indices


def point(
    layout: SlotLayout, moves: list[GroupMoves], host_address: int, slot_bytes: int
) -> Pointers:
    """Expand moves into addresses; `host_address` is where slot 0 of the arena starts."""
    device: list[Indices] = []
    host: list[Indices] = []
    sizes: list[Indices] = []
    for move in moves:
        base = host_address + move.slots * slot_bytes + move.offsets
        for page in layout.groups[move.group]:
            device.append(page.address + move.blocks * page.block_stride)
            host.append(base + page.offset)
            sizes.append(np.full(len(move.blocks), page.page_bytes, dtype=np.int64))
    if not device:
        return Pointers(*(np.empty(0, dtype=np.int64) for _ in range(3)))
    return Pointers(np.concatenate(device), np.concatenate(host), np.concatenate(sizes))
