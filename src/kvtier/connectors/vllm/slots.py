"""Where a KV block lies on the device and inside an arena slot.

A slot holds one key: `blocks_per_chunk` device blocks of one KV-cache group, for all workers.

    slot     = slice of rank 0 | slice of rank 1 | ... | alignment
    slice    = sub-block 0 | sub-block 1 | ...         (one a device block)
    sub-block = the un-padded pages of the group's refs, one after the other

Groups use the same slots and may fill less of them. The scheduler knows the size from its
configuration alone (`payload_bytes`), before any tensor exists; a worker whose tensors do not
fit refuses to start. Pure integers and numpy: nothing here touches a device.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from kvtier.errors import InvalidSettings

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches
    from vllm.v1.kv_offload.config import OffloadingConfig

Indices = npt.NDArray[np.int64]


class Page(NamedTuple):
    """One ref's page: on the device at `address + block * block_stride`."""

    tensor: int
    address: int
    block_stride: int
    page_bytes: int
    offset: int
    """Bytes from the start of the sub-block."""


class GroupMoves(NamedTuple):
    """Device blocks of one group and where each lies in the arena; equally long arrays."""

    group: int
    blocks: Indices
    slots: Indices
    offsets: Indices
    """Byte offset of the block's sub-block inside its slot, the rank's slice included."""


def worker_bytes(config: "OffloadingConfig") -> int:
    """Bytes of one worker's slice of a slot."""
    return config.worker_kv_bytes_per_block * config.cache.blocks_per_chunk


def payload_bytes(config: "OffloadingConfig") -> int:
    """Bytes of a slot that carry KV: the slices of all workers. Known to the scheduler."""
    total = worker_bytes(config) * config.parallel.world_size
    if total <= 0:
        raise InvalidSettings(
            "the engine reports no KV cache bytes per block: kvtier needs a model with a KV cache"
        )
    return total


class SlotLayout:
    """The map between device blocks and slots, for one worker. Immutable."""

    def __init__(
        self,
        groups: Sequence[Sequence[Page]],
        *,
        blocks_per_chunk: int,
        device_blocks: int,
        slice_bytes: int,
        rank: int,
    ) -> None:
        self.groups = tuple(tuple(pages) for pages in groups)
        self.blocks_per_chunk = blocks_per_chunk
        self.device_blocks = device_blocks
        self.rank = rank
        self.slice_bytes = slice_bytes
        self.slice_offset = rank * slice_bytes
        self.sub_block_bytes = tuple(sum(page.page_bytes for page in g) for g in self.groups)
        needed = max(self.sub_block_bytes, default=0) * blocks_per_chunk
        if needed > slice_bytes:
            raise InvalidSettings(
                f"the KV cache of worker {rank} needs {needed} bytes a slot, but the "
                f"configuration gives it {slice_bytes}: this KV cache layout is not supported; "
                "start without kvtier or report the model"
            )

    @classmethod
    def from_caches(
        cls, caches: "CanonicalKVCaches", *, blocks_per_chunk: int, slice_bytes: int, rank: int
    ) -> "SlotLayout":
        """Lay out the engine's tensors. `slice_bytes` is `worker_bytes` of the configuration.

        Raises InvalidSettings if they do not fit or a block is not contiguous.
        """
        return cls(
            [_pages(caches, refs) for refs in caches.group_data_refs],
            blocks_per_chunk=blocks_per_chunk,
            device_blocks=min((len(t.tensor) for t in caches.tensors), default=0),
            slice_bytes=slice_bytes,
            rank=rank,
        )

    def expand(
        self,
        blocks: npt.ArrayLike,
        group_sizes: Sequence[int],
        block_indices: Sequence[int],
        slots: npt.ArrayLike,
    ) -> list[GroupMoves]:
        """Pair each device block with its place in the arena.

        `blocks` holds `group_sizes[g]` device blocks of each group, in order; they are blocks
        `block_indices[g]`, +1, ... of a request, so the first and the last slot of a group
        may be used in part. `slots` holds one slot per chunk touched, groups in order.
        Raises ValueError if the numbers do not fit together: that is a bug, not a fault.
        """
        device = np.asarray(blocks, dtype=np.int64)
        hosts = np.asarray(slots, dtype=np.int64)
        if not len(group_sizes) == len(block_indices) == len(self.groups):
            raise ValueError(f"{len(group_sizes)} groups in the job, {len(self.groups)} here")
        if device.size and not 0 <= device.min() <= device.max() < self.device_blocks:
            raise ValueError(f"device blocks outside 0..{self.device_blocks - 1}: {device}")
        moves: list[GroupMoves] = []
        block_at = slot_at = 0
        for group, (size, first) in enumerate(zip(group_sizes, block_indices, strict=True)):
            if size == 0:
                continue
            positions = first % self.blocks_per_chunk + np.arange(size, dtype=np.int64)
            chunks = positions // self.blocks_per_chunk
            used = int(chunks[-1]) + 1
            if slot_at + used > hosts.size or block_at + size > device.size:
                raise ValueError(f"group {group} needs {used} slots and {size} blocks")
            sub_blocks = positions % self.blocks_per_chunk
            moves.append(
                GroupMoves(
                    group,
                    device[block_at : block_at + size],
                    hosts[slot_at : slot_at + used][chunks],
                    self.slice_offset + sub_blocks * self.sub_block_bytes[group],
                )
            )
            block_at += size
            slot_at += used
        if block_at != device.size or slot_at != hosts.size:
            raise ValueError(f"{device.size - block_at} blocks, {hosts.size - slot_at} slots over")
        return moves

    def moved_bytes(self, moves: Sequence[GroupMoves]) -> int:
        """Bytes this worker copies for `moves`."""
        return sum(len(move.blocks) * self.sub_block_bytes[move.group] for move in moves)


def _pages(caches: "CanonicalKVCaches", refs: "Sequence[CanonicalKVCacheRef]") -> list[Page]:
    pages: list[Page] = []
    offset = 0
    for ref in refs:
        tensor = caches.tensors[ref.tensor_idx].tensor
        row_bytes = tensor[0].numel() * tensor.element_size()
        if not tensor[0].is_contiguous() or ref.page_size_bytes > row_bytes:
            raise InvalidSettings(
                f"KV cache tensor {ref.tensor_idx} has no contiguous block of "
                f"{ref.page_size_bytes} bytes: this KV cache layout is not supported"
            )
        stride = tensor.stride(0) * tensor.element_size()
        pages.append(Page(ref.tensor_idx, tensor.data_ptr(), stride, ref.page_size_bytes, offset))
        offset += ref.page_size_bytes
    return pages
