"""The parts that more than one measurement needs: a RAM-only cache, and chains of keys."""

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


def memory(batch_bytes: int, size: int) -> tuple[Blocks, Blocks]:
    """What is written, filled, and where it is read to: blocks of `size`, at whole pages."""
    source, target = aligned_buffer(2 * batch_bytes).reshape(2, batch_bytes // size, size)
    fill(source)
    return source, target


def each_part(
    pool: ThreadPoolExecutor, count: int, step: int, work: Callable[[range], None]
) -> None:
    """Have the pool do `work` on `count` rows, `step` at a time. Raises what `work` raises."""
    list(pool.map(work, [range(at, min(at + step, count)) for at in range(0, count, step)]))


class Tiered:
    """Writes all of `source` as one new chain, and reads it into `target`, `step` blocks a call."""

    def __init__(
        self, tier: Tier, pool: ThreadPoolExecutor, source: Blocks, target: Blocks, step: int
    ) -> None:
        self._tier, self._pool, self._source, self._target = tier, pool, source, target
        self._step = step
        self._numbers = itertools.count()
        self.keys: list[BlockKey] = []
        """Of the chain that `read` and `clean` are about."""

    def write(self) -> None:
        """The chain written before stays where it is."""
        self.keys = chain(next(self._numbers), len(self._source))
        ancestors = parents(self.keys)

        def part(rows: range) -> None:
            moves = [BlockMove(self.keys[row], self._source[row]) for row in rows]
            outcomes = self._tier.write_from(moves, ancestors[rows.start : rows.stop])
            assert set(outcomes) == {Outcome.DONE}, outcomes

        each_part(self._pool, len(self._source), self._step, part)

    def read(self) -> None:
        """All of it has to be there."""

        def part(rows: range) -> None:
            moves = [BlockMove(self.keys[row], self._target[row]) for row in rows]
            assert set(self._tier.read_into(moves)) == {Outcome.DONE}

        each_part(self._pool, len(self._source), self._step, part)

    def clean(self) -> None:
        """Have the tier forget the chain."""
        self._tier.delete(self.keys)

    def replace(self) -> None:
        """What a full tier does: the old blocks go, the new ones take their room."""
        self.clean()
        self.write()

    def verify(self) -> None:
        """Raises AssertionError where the tier returns other bytes than it was given."""
        self.replace()
        self._target[:] = 0
        self.read()
        assert np.array_equal(self._source, self._target), "other bytes came back"

    def close(self) -> None:
        """Close the tier."""
        self._tier.close()
