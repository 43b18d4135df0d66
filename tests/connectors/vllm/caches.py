"""Synthetic KV caches in the shapes that the engine passes to a worker, with random contents."""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
)

BLOCKS = 16


@dataclass
class Shape:
    """The tensors of a cache, and the page bytes that each group uses of each tensor."""

    row_bytes: int
    tensors: int
    groups: list[dict[int, int]]
    one_allocation: bool = True

    @property
    def worker_bytes_per_block(self) -> int:
        return self.row_bytes * self.tensors

    def build(self, seed: int = 0) -> CanonicalKVCaches:
        generator = np.random.default_rng(seed)
        size = self.tensors * BLOCKS * self.row_bytes
        backing = torch.from_numpy(generator.integers(0, 256, size, dtype=np.uint8))
        rows = backing.view(torch.int8).reshape(self.tensors, BLOCKS, self.row_bytes)
        tensors = [rows[i] if self.one_allocation else rows[i].clone() for i in range(self.tensors)]
        return CanonicalKVCaches(
            [CanonicalKVCacheTensor(tensor, self.row_bytes) for tensor in tensors],
            [
                [CanonicalKVCacheRef(tensor, page) for tensor, page in group.items()]
                for group in self.groups
            ],
        )


SHAPES = {
    "one group, constant stride": Shape(64, 4, [dict.fromkeys(range(4), 64)]),
    "separately allocated": Shape(64, 4, [dict.fromkeys(range(4), 64)], one_allocation=False),
    "padded pages": Shape(64, 3, [dict.fromkeys(range(3), 40)]),
    "two groups over the same tensors": Shape(
        96, 3, [dict.fromkeys(range(3), 96), dict.fromkeys(range(3), 80)]
    ),
    "uneven groups and strides": Shape(48, 5, [{0: 48, 2: 48, 3: 48}, {4: 16, 1: 48}]),
}


def flat(groups: list[list[int]]) -> list[int]:
    return [block for blocks in groups for block in blocks]


def device_spec(
    blocks: list[int], sizes: list[int] | None = None, firsts: list[int] | None = None
) -> GPULoadStoreSpec:
    sizes = sizes or [len(blocks)]
    return GPULoadStoreSpec(blocks, group_sizes=sizes, block_indices=firsts or [0] * len(sizes))


def pages(caches: CanonicalKVCaches, group: int, block: int) -> bytes:
    """Return the contents of a block: its refs' pages without padding, one after the other."""
    return b"".join(
        caches.tensors[ref.tensor_idx].tensor[block].numpy().tobytes()[: ref.page_size_bytes]
        for ref in caches.group_data_refs[group]
    )


def snapshot(caches: CanonicalKVCaches) -> list[torch.Tensor]:
    return [cache.tensor.clone() for cache in caches.tensors]


def scribble(caches: CanonicalKVCaches, group: int, block: int, value: int) -> None:
    for ref in caches.group_data_refs[group]:
        caches.tensors[ref.tensor_idx].tensor[block, : ref.page_size_bytes] = value
