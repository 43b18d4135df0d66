"""Parts that several benchmarks share: key chains, a RAM-only cache, and batches through a tier.

`Tiered` writes and reads a batch through a tier with a thread pool, so that the overhead of every
tier over plain files is measured in the same way.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kvtier.admission.always import Always
from kvtier.blocks.key import BlockKey, GroupShape, KeySpace
from kvtier.cache.core import TieredCache
from kvtier.cache.residency import Residency
from kvtier.eviction.lru import Lru
from kvtier.memory.arena import Arena
from kvtier.tiers.base import BlockMove, Outcome, Tier
from kvtier.tiers.shared.reading import aligned_buffer
from kvtier.transfer.engine import TransferEngine

Blocks = npt.NDArray[np.uint8]
"""Blocks in an array of shape [blocks, bytes of a block]."""

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
"""The key space of the benchmarks. It names no model, because measurements do not depend on one."""


def ram_cache(slots: int, slot_bytes: int) -> TieredCache:
    """Return a cache with a RAM tier only, whose memory is populated to avoid page faults."""
    arena = Arena.create(slots, slot_bytes)
    arena.wait_populated()
    residency = Residency(arena, ["ram"], [Lru(capacity_rows=slots)])
    engine = TransferEngine([], slot_bytes, queue_blocks=1)
    return TieredCache(residency, [], [Always()], engine, promote_deadline_s=1.0)


def chain(number: int, length: int) -> list[BlockKey]:
    """Return the keys of a prefix as an engine makes them: 32 bytes of hash, 4 of group."""
    head = number.to_bytes(16, "big")
    return [BlockKey(head + i.to_bytes(16, "big") + b"\0\0\0\0") for i in range(length)]


def fill(blocks: Blocks) -> None:
    """Fill blocks with bytes that differ between blocks and between positions in a block."""
    ramp = np.arange(blocks.shape[1], dtype=np.uint32)
    for number, block in enumerate(blocks):
        block[:] = (ramp * 2654435761 + number * 40503 >> 13).astype(np.uint8)


def parents(keys: list[BlockKey]) -> list[BlockKey | None]:
    """Return the predecessor of each key of a chain."""
    return [None, *(earlier for earlier, _ in pairwise(keys))]


def memory(batch_bytes: int, size: int) -> tuple[Blocks, Blocks]:
    """Return page-aligned blocks of `size` bytes: filled ones to write, and a target for reads."""
    source, target = aligned_buffer(2 * batch_bytes).reshape(2, batch_bytes // size, size)
    fill(source)
    return source, target


def each_part(
    pool: ThreadPoolExecutor, count: int, step: int, work: Callable[[range], None]
) -> None:
    """Call `work` in the pool on ranges of `step` of `count` rows. Raises what `work` raises."""
    list(pool.map(work, [range(at, min(at + step, count)) for at in range(0, count, step)]))


class Tiered:
    """A tier under test: writes `source` as a chain, and reads it back into `target`.

    Each call of the tier takes `step` blocks.
    """

    def __init__(
        self, tier: Tier, pool: ThreadPoolExecutor, source: Blocks, target: Blocks, step: int
    ) -> None:
        self._tier, self._pool, self._source, self._target = tier, pool, source, target
        self._step = step
        self._numbers = itertools.count()
        self.keys: list[BlockKey] = []
        """The keys of the last chain that was written, which `read` and `clean` use."""

    def write(self) -> None:
        """Write `source` as a new chain, and leave earlier ones in the tier."""
        self.keys = chain(next(self._numbers), len(self._source))
        ancestors = parents(self.keys)

        def part(rows: range) -> None:
            moves = [BlockMove(self.keys[row], self._source[row]) for row in rows]
            outcomes = self._tier.write_from(moves, ancestors[rows.start : rows.stop])
            assert set(outcomes) == {Outcome.DONE}, outcomes

        each_part(self._pool, len(self._source), self._step, part)

    def read(self) -> None:
        """Read the whole chain into `target`; every block must be present."""

        def part(rows: range) -> None:
            moves = [BlockMove(self.keys[row], self._target[row]) for row in rows]
            assert set(self._tier.read_into(moves)) == {Outcome.DONE}

        each_part(self._pool, len(self._source), self._step, part)

    def clean(self) -> None:
        """Delete the chain from the tier."""
        self._tier.delete(self.keys)

    def replace(self) -> None:
        """Delete the last chain and write a new one, as a full tier does."""
        self.clean()
        self.write()

    def verify(self) -> None:
        """Write and read a chain; raise AssertionError if the tier returns other bytes."""
        self.replace()
        self._target[:] = 0
        self.read()
        assert np.array_equal(self._source, self._target), "other bytes came back"

    def close(self) -> None:
        """Close the tier."""
        self._tier.close()
