"""The parts that more than one measurement needs: a RAM-only cache, and chains of keys."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kvtier.admission.always import Always
from kvtier.blocks.key import BlockKey, GroupShape, KeySpace
from kvtier.cache.core import TieredCache
from kvtier.cache.residency import Residency
from kvtier.eviction.lru import Lru
from kvtier.memory.arena import Arena
from kvtier.transfer.engine import TransferEngine

Blocks = npt.NDArray[np.uint8]
"""Shape [blocks, bytes of a block]."""

BATCH = 32

SPACE = KeySpace(
    engine="bench",
    model="",
    revision="",
    weights="",
    dtype="",
    layout="",
    block_bytes=0,
    blocks_per_chunk=1,
    tokens_per_hash=16,
    groups=(GroupShape(tokens_per_block=16, layers=""),),
    world_size=1,
    tp_size=1,
    pp_size=1,
    hash_algorithm="",
    hash_seed="",
    isa="",
)
"""Of no model: what is measured does not depend on it."""


def ram_cache(slots: int, slot_bytes: int) -> TieredCache:
    """A cache of one tier, populated, so that no page fault is measured."""
    arena = Arena.create(slots, slot_bytes)
    arena.wait_populated()
    residency = Residency(arena, ["ram"], [Lru(capacity_rows=slots)])
    engine = TransferEngine([], slot_bytes, queue_blocks=1)
    return TieredCache(residency, [], [Always()], engine, promote_deadline_s=1.0)


def chain(number: int, length: int) -> list[BlockKey]:
    """Keys of one prefix as an engine makes them: 32 bytes of hash, 4 bytes of group."""
    head = number.to_bytes(16, "big")
    return [BlockKey(head + i.to_bytes(16, "big") + b"\0\0\0\0") for i in range(length)]


def fill(blocks: Blocks) -> None:
    """Bytes that tell every block and every place in a block apart."""
    ramp = np.arange(blocks.shape[1], dtype=np.uint32)
    for number, block in enumerate(blocks):
        block[:] = (ramp * 2654435761 + number * 40503 >> 13).astype(np.uint8)


def parents(keys: list[BlockKey]) -> list[BlockKey | None]:
    """The predecessor of each key of a chain."""
    return [None, *(earlier for earlier, _ in pairwise(keys))]
