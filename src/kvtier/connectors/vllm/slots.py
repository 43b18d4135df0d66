"""The places of a KV block on the device and in an arena slot.

A slot holds one key: `blocks_per_chunk` device blocks of one KV-cache group, of all workers, in
one of the two arrangements of `arrangement`.

    per rank   slot = slice of rank 0 | slice of rank 1 | ... | alignment
               slice = sub-block 0 | sub-block 1 | ...         (one per device block)
               sub-block = the pages of the group's refs without padding, in order
    canonical  slot = sub-block 0 | sub-block 1 | ... | alignment
               sub-block = the canonical pages of the refs, each with the KV heads of all ranks

In both arrangements a worker has a list of pieces: strided fragments of its own pages and their
places in the sub-block. All groups use the same slots and may fill a part of them only. This
module uses integers and numpy and does not access a device.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from kvtier.errors import InvalidSettings

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import (
        CanonicalKVCacheRef,
        CanonicalKVCaches,
        CanonicalPageMapping,
    )

Indices = npt.NDArray[np.int64]


class Turn(NamedTuple):
    """The share of blocks that a rank stores if `writers` ranks hold the same bytes.

    The rank stores every block whose place modulo `writers` is `position`.
    """

    writers: int = 1
    position: int = 0


class Piece(NamedTuple):
    """Equal fragments of one ref's page, at a constant step on the device and in the slot.

    Fragment `i` of a block is at `address + block * block_stride + i * device_step` on the
    device and at `offset + i * host_step` in the sub-block.
    """

    tensor: int
    address: int
    block_stride: int
    fragment_bytes: int
    offset: int
    fragments: int = 1
    device_step: int = 0
    host_step: int = 0
    turn: Turn = Turn()

    @property
    def size_bytes(self) -> int:
        """The bytes of one block in this piece."""
        return self.fragments * self.fragment_bytes


class GroupCopy(NamedTuple):
    """The part of a device job that concerns one group: device blocks and their places.

    The three arrays are equally long.
    """

    group: int
    blocks: Indices
    slots: Indices
    sub_blocks: Indices
    """The sub-block of the slot that corresponds to each device block."""


class SlotLayout:
    """The map between device blocks and slots of one worker. Immutable."""

    def __init__(
        self,
        groups: Sequence[Sequence[Piece]],
        *,
        sub_block_bytes: Sequence[int],
        blocks_per_chunk: int,
        device_blocks: int,
        slice_bytes: int,
        slice_offset: int,
        rank: int,
    ) -> None:
        self.groups = tuple(tuple(pieces) for pieces in groups)
        self.sub_block_bytes = tuple(sub_block_bytes)
        self.blocks_per_chunk = blocks_per_chunk
        self.device_blocks = device_blocks
        self.rank = rank
        self.slice_bytes = slice_bytes
        self.slice_offset = slice_offset
        self._own_bytes = tuple(_bytes_by_turn(pieces) for pieces in self.groups)
        needed = max(self.sub_block_bytes, default=0) * blocks_per_chunk
        if needed > slice_bytes:
            raise InvalidSettings(
                f"the KV cache of worker {rank} needs {needed} bytes per slot, but the "
                f"configuration provides {slice_bytes}: this KV cache layout is not supported; "
                "start without kvtier or report the model"
            )

    @classmethod
    def from_caches(
        cls, caches: "CanonicalKVCaches", *, blocks_per_chunk: int, slice_bytes: int, rank: int
    ) -> "SlotLayout":
        """Build the layout of per-rank slots, with `slice_bytes` as in the configuration.

        Raises InvalidSettings if the pages do not fit or a block is not contiguous.
        """
        groups: list[list[Piece]] = []
        sub_block_bytes: list[int] = []
        for refs in caches.group_data_refs:
            sizes = [ref.page_size_bytes for ref in refs]
            places = itertools.accumulate(sizes, initial=0)
            groups.append([_page(caches, ref, at) for ref, at in zip(refs, places, strict=False)])
            sub_block_bytes.append(sum(sizes))
        return cls(
            groups,
            sub_block_bytes=sub_block_bytes,
            blocks_per_chunk=blocks_per_chunk,
            device_blocks=_device_blocks(caches),
            slice_bytes=slice_bytes,
            slice_offset=rank * slice_bytes,
            rank=rank,
        )

    @classmethod
    def from_mappings(
        cls,
        caches: "CanonicalKVCaches",
        *,
        blocks_per_chunk: int,
        payload_bytes: int,
        rank: int,
        layer_names: Sequence[Sequence[str]],
    ) -> "SlotLayout":
        """Build the layout of canonical slots from the mappings that the engine has certified.

        `layer_names` are the names of each group's layers, for messages. Raises InvalidSettings
        if a ref has no mapping that is valid on any number of ranks, although the configuration
        promised one.
        """
        groups: list[list[Piece]] = []
        sub_block_bytes: list[int] = []
        for group, refs in enumerate(caches.group_data_refs):
            pieces: list[list[Piece]] = []
            at = 0
            for number, ref in enumerate(refs):
                mapping = ref.mapping
                if mapping is None or not mapping.parallelism_agnostic:
                    names = layer_names[group]
                    name = names[number] if len(names) == len(refs) else f"ref {number}"
                    raise InvalidSettings(_not_certified(name, group))
                pieces.append(list(_cut(_page(caches, ref, at), mapping)))
                at += mapping.canonical_page_size_bytes
            # Equal pieces of neighboring pages become adjacent, so that one copy can move them.
            turned = itertools.zip_longest(*pieces)
            groups.append([piece for row in turned for piece in row if piece is not None])
            sub_block_bytes.append(at)
        return cls(
            groups,
            sub_block_bytes=sub_block_bytes,
            blocks_per_chunk=blocks_per_chunk,
            device_blocks=_device_blocks(caches),
            slice_bytes=payload_bytes,
            slice_offset=0,
            rank=rank,
        )

    def expand(
        self,
        blocks: npt.ArrayLike,
        group_sizes: Sequence[int],
        block_indices: Sequence[int],
        slots: npt.ArrayLike,
    ) -> list[GroupCopy]:
        """Pair each device block with its place in the arena.

        `blocks` holds `group_sizes[g]` device blocks of each group, in order. They are blocks
        `block_indices[g]`, +1, ... of a request, so the first and the last slot of a group
        may be used in part. `slots` holds one slot per chunk, groups in order.
        Raises ValueError if the numbers do not match, which is a bug in the caller.
        """
        device = np.asarray(blocks, dtype=np.int64)
        hosts = np.asarray(slots, dtype=np.int64)
        if not len(group_sizes) == len(block_indices) == len(self.groups):
            raise ValueError(f"the job has {len(group_sizes)} groups instead of {len(self.groups)}")
        if device.size and not 0 <= device.min() <= device.max() < self.device_blocks:
            raise ValueError(f"device blocks outside 0..{self.device_blocks - 1}: {device}")
        copies: list[GroupCopy] = []
        block_at = slot_at = 0
        for group, (size, first) in enumerate(zip(group_sizes, block_indices, strict=True)):
            if size == 0:
                continue
            positions = first % self.blocks_per_chunk + np.arange(size, dtype=np.int64)
            chunks = positions // self.blocks_per_chunk
            used = int(chunks[-1]) + 1
            if slot_at + used > hosts.size or block_at + size > device.size:
                raise ValueError(f"group {group} needs {used} slots and {size} blocks")
            copies.append(
                GroupCopy(
                    group,
                    device[block_at : block_at + size],
                    hosts[slot_at : slot_at + used][chunks],
                    positions % self.blocks_per_chunk,
                )
            )
            block_at += size
            slot_at += used
        if block_at != device.size or slot_at != hosts.size:
            raise ValueError(
                f"{device.size - block_at} blocks and {hosts.size - slot_at} slots are left over"
            )
        return copies

    def offsets(self, copy: GroupCopy) -> Indices:
        """Return the offset in its slot at which each block's sub-block begins."""
        return self.slice_offset + copy.sub_blocks * self.sub_block_bytes[copy.group]

    def written(self, copy: GroupCopy, turn: Turn) -> GroupCopy:
        """Return the part of a store that this rank writes if other ranks hold the same bytes.

        The writer is determined by slot and sub-block, which are the same for all ranks.
        """
        if turn.writers == 1:
            return copy
        place = copy.slots * self.blocks_per_chunk + copy.sub_blocks
        mine = place % turn.writers == turn.position
        return GroupCopy(copy.group, *(column[mine] for column in copy[1:]))

    def loaded_bytes(self, copies: Sequence[GroupCopy]) -> int:
        """Return the number of bytes that this worker copies to load `copies`."""
        return sum(len(m.blocks) * sum(self._own_bytes[m.group].values()) for m in copies)

    def stored_bytes(self, copies: Sequence[GroupCopy]) -> int:
        """Return the number of bytes that this worker copies to store `copies`."""
        return sum(
            len(self.written(copy, turn).blocks) * size
            for copy in copies
            for turn, size in self._own_bytes[copy.group].items()
        )


def _page(caches: "CanonicalKVCaches", ref: "CanonicalKVCacheRef", offset: int) -> Piece:
    """Return a ref's whole page as a piece at `offset` of the sub-block."""
    tensor = caches.tensors[ref.tensor_idx].tensor
    row_bytes = tensor[0].numel() * tensor.element_size()
    if not tensor[0].is_contiguous() or ref.page_size_bytes > row_bytes:
        raise InvalidSettings(
            f"KV cache tensor {ref.tensor_idx} has no contiguous block of "
            f"{ref.page_size_bytes} bytes: this KV cache layout is not supported"
        )
    stride = tensor.stride(0) * tensor.element_size()
    return Piece(ref.tensor_idx, tensor.data_ptr(), stride, ref.page_size_bytes, offset)


def _cut(page: Piece, mapping: "CanonicalPageMapping") -> Iterator[Piece]:
    """Yield the pieces of a page that are separate in the canonical page at the same offset."""
    for run in mapping.runs:
        yield page._replace(
            address=page.address + run.local_offset,
            fragment_bytes=run.fragment_size,
            offset=page.offset + run.canonical_offset,
            fragments=run.num_fragments,
            device_step=run.local_stride,
            host_step=run.canonical_stride,
            turn=Turn(mapping.num_writers, mapping.writer_index),
        )


def _bytes_by_turn(pieces: Sequence[Piece]) -> dict[Turn, int]:
    found: dict[Turn, int] = {}
    for piece in pieces:
        found[piece.turn] = found.get(piece.turn, 0) + piece.size_bytes
    return found


def _device_blocks(caches: "CanonicalKVCaches") -> int:
    return min((len(cache.tensor) for cache in caches.tensors), default=0)


def _not_certified(layer: str, group: int) -> str:
    return (
        f"canonical_layout: the KV cache of {layer} (group {group}) cannot be divided by whole "
        "heads among the ranks, although the engine's configuration says so; write "
        '"canonical_layout": false into kv_connector_extra_config'
    )


class CopyPointers(NamedTuple):
    """Pointer arrays for a batched device copy, int64 and equally long.

    Entry i stands for `sizes[i]` bytes between `device[i]` and `host[i]`.
    """

    device: Indices
    host: Indices
    sizes: Indices


def copy_pointers(
    layout: SlotLayout,
    copies: list[GroupCopy],
    *,
    is_store: bool,
    host_address: int,
    slot_bytes: int,
) -> CopyPointers:
    """Return the addresses of all fragments; `host_address` is the start of the arena's slot 0.

    A wrong address would corrupt blocks without a crash, so the computation is kept apart from
    the CUDA copier, where it can be tested on machines without a GPU.
    """
    device: list[Indices] = []
    host: list[Indices] = []
    sizes: list[Indices] = []
    for copy in copies:
        for piece in layout.groups[copy.group]:
            part = layout.written(copy, piece.turn) if is_store else copy
            fragment = np.arange(piece.fragments, dtype=np.int64)
            at = part.slots * slot_bytes + layout.offsets(part) + (host_address + piece.offset)
            page = piece.address + part.blocks * piece.block_stride
            device.append(np.add.outer(page, fragment * piece.device_step).ravel())
            host.append(np.add.outer(at, fragment * piece.host_step).ravel())
            sizes.append(np.full(len(device[-1]), piece.fragment_bytes, dtype=np.int64))
    if not device:
        return CopyPointers(*(np.empty(0, dtype=np.int64) for _ in range(3)))
    return CopyPointers(np.concatenate(device), np.concatenate(host), np.concatenate(sizes))
