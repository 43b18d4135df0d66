"""One chunk as vLLM's own offloading lays it out, and as kvtier's connector does.

Both get the same device tensors. Needs vLLM; starts no engine.
"""

import ctypes
import os
from collections.abc import Sequence

import numpy as np
import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
)
from vllm.v1.kv_offload.cpu.gpu_worker import compute_sub_block_ptrs
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion

from kvtier.connectors.vllm.slots import SlotLayout

DEVICE_BLOCKS = 6


def device(pages: Sequence[int], rank: int) -> list[torch.Tensor]:
    seeded = torch.Generator().manual_seed(rank)
    return [
        torch.randint(-128, 127, (DEVICE_BLOCKS, page), dtype=torch.int8, generator=seeded)
        for page in pages
    ]


def theirs(pages: Sequence[int], blocks: Sequence[int], workers: int) -> bytes:
    """Return the bytes that vLLM's fs tier writes to a file: a row of its host region."""
    slice_bytes = sum(pages) * len(blocks)
    row_bytes = -(-slice_bytes * workers // 4096) * 4096
    regions = []
    for rank in range(workers):
        region = SharedOffloadRegion(
            engine_id=f"kvtier-test-{os.getpid()}",
            num_chunks=1,
            rank=rank,
            kv_bytes_per_chunk=row_bytes,
            cpu_page_size=slice_bytes,
        )
        regions.append(region)
        for tensor in device(pages, rank):
            view = region.create_next_worker_view(tensor.shape[1] * len(blocks))
            places = np.zeros(len(blocks), np.uint64)
            compute_sub_block_ptrs(np.array([0]), len(blocks), places, view, 0)
            for place, block in zip(places, blocks, strict=True):
                ctypes.memmove(int(place), tensor[block].data_ptr(), tensor.shape[1])
            del view
    row = regions[0].base_tensor.numpy().tobytes()
    for region in reversed(regions):
        region.cleanup()
    return row


def ours(pages: Sequence[int], blocks: Sequence[int], workers: int) -> bytes:
    """Return the slot that kvtier stores, including its padding."""
    slice_bytes = sum(pages) * len(blocks)
    slot = np.zeros(-(-slice_bytes * workers // 4096) * 4096, np.uint8)
    for rank in range(workers):
        tensors = device(pages, rank)
        caches = CanonicalKVCaches(
            [CanonicalKVCacheTensor(t, t.shape[1]) for t in tensors],
            [[CanonicalKVCacheRef(i, page) for i, page in enumerate(pages)]],
        )
        layout = SlotLayout.from_caches(
            caches, blocks_per_chunk=len(blocks), slice_bytes=slice_bytes, rank=rank
        )
        (move,) = layout.expand(blocks, [len(blocks)], [0], [0])
        for block, offset in zip(move.blocks, layout.offsets(move), strict=True):
            for page in layout.groups[0]:
                start = int(offset) + page.offset
                content = tensors[page.tensor][int(block)].numpy().view(np.uint8)
                slot[start : start + page.size_bytes] = content
    return slot.tobytes()
