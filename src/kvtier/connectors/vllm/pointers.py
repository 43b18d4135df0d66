"""Pointer arrays for a batched device copy: one entry a fragment, pure numpy.

Apart from the CUDA copier because this is all of it that can be wrong silently, and all of it
that can be tested on a machine without a GPU.
"""

from typing import NamedTuple

import numpy as np

from kvtier.connectors.vllm.copier import Verb
from kvtier.connectors.vllm.slots import GroupMoves, Indices, SlotLayout


class Pointers(NamedTuple):
    """Entry i: `sizes[i]` bytes between `device[i]` and `host[i]`; int64, equally long."""

    device: Indices
    host: Indices
    sizes: Indices


def point(
    layout: SlotLayout, moves: list[GroupMoves], verb: Verb, host_address: int, slot_bytes: int
) -> Pointers:
    """Expand moves into addresses; `host_address` is where slot 0 of the arena starts."""
    device: list[Indices] = []
    host: list[Indices] = []
    sizes: list[Indices] = []
    for move in moves:
        for piece in layout.groups[move.group]:
            part = layout.written(move, piece.turn) if verb is Verb.STORE else move
            fragment = np.arange(piece.fragments, dtype=np.int64)
            at = part.slots * slot_bytes + layout.offsets(part) + (host_address + piece.offset)
            page = piece.address + part.blocks * piece.block_stride
            device.append(np.add.outer(page, fragment * piece.device_step).ravel())
            host.append(np.add.outer(at, fragment * piece.host_step).ravel())
            sizes.append(np.full(len(device[-1]), piece.fragment_bytes, dtype=np.int64))
    if not device:
        return Pointers(*(np.empty(0, dtype=np.int64) for _ in range(3)))
    return Pointers(np.concatenate(device), np.concatenate(host), np.concatenate(sizes))
