"""Sample values for tests: a key space, and buffers of known content."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvtier.blocks.key import GroupShape, KeySpace
from kvtier.blocks.layout import ALIGNMENT
from kvtier.clock import seeded
from kvtier.tiers.base import Buffer

GUARD = 0xEE
"""The byte that fills buffers into which nothing was read yet."""


def sample_space(**fields: Any) -> KeySpace:
    """Return the key space of a small model; `fields` replace some of its fields."""
    sample: dict[str, Any] = {
        "engine": "vllm 0.32.0",
        "model": "tiny",
        "revision": "main",
        "weights": "ab12",
        "dtype": "float32",
        "layout": "NHD",
        "block_bytes": 4096,
        "blocks_per_chunk": 1,
        "tokens_per_hash": 16,
        "groups": (GroupShape(tokens_per_block=16, layers="cd34"),),
        "world_size": 1,
        "tp_size": 1,
        "pp_size": 1,
        "hash_algorithm": "sha256",
        "hash_seed": "0",
        "isa": "avx512",
    }
    return KeySpace(**{**sample, **fields})


def aligned(content: Buffer) -> Buffer:
    """Return a copy of `content` at an address that suits direct I/O."""
    room = np.empty(len(content) + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    slot: Buffer = room[start : start + len(content)]
    np.copyto(slot, content)
    return slot


def content(seed: int, size: int) -> Buffer:
    """Return `size` bytes that are a function of `seed`, at an address that suits direct I/O."""
    return aligned(np.frombuffer(seeded(seed).randbytes(size), np.uint8))


def blank(size: int) -> Buffer:
    """Return memory filled with GUARD to read into, at an address that suits direct I/O."""
    return aligned(np.full(size, GUARD, np.uint8))


def joined(parts: Sequence[Buffer]) -> bytes:
    """Return the bytes of a file that consists of these parts."""
    return b"".join(bytes(part) for part in parts)
